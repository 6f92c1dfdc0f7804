"""A small SegFormer with weights of its own, and files of it."""

import paddle

from paddleseg_segformer import MixVisionTransformer_B0, SegFormer


def small_model(classes=5, stage_projection="linear"):
    """Logits that differ from pixel to pixel, and BatchNorm statistics that are no identity."""
    paddle.seed(1)
    model = SegFormer(classes, MixVisionTransformer_B0(), 32, stage_projection)
    randomize(model)
    model.linear_pred.weight.set_value(paddle.randn(model.linear_pred.weight.shape))
    model.eval()
    return model


def randomize(model):
    """Take biases away from 0, and BatchNorm's numbers from 0 and 1, where errors hide."""
    for name, tensor in model.state_dict().items():
        if name.endswith("_variance"):
            tensor.set_value(paddle.rand(tensor.shape) + 0.5)
        elif name.endswith(("bias", "_mean")):
            tensor.set_value(paddle.randn(tensor.shape) * 0.1)
        elif name.endswith("_batch_norm.weight"):
            tensor.set_value(paddle.randn(tensor.shape))


def save(model, path):
    paddle.save(model.state_dict(), str(path))
    return path
