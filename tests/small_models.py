"""A small SegFormer with weights of its own, and files of it."""

import paddle

from paddleseg_segformer import MixVisionTransformer_B0, SegFormer


def small_model(classes=5, stage_projection="linear"):
    """Logits that differ from pixel to pixel, and BatchNorm statistics that are no identity."""
    paddle.seed(1)
    model = SegFormer(classes, MixVisionTransformer_B0(), 32, stage_projection)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._mean.set_value(paddle.randn(layer._mean.shape) * 0.1)
            layer._variance.set_value(paddle.rand(layer._variance.shape) + 0.5)
            layer.weight.set_value(paddle.randn(layer.weight.shape))
            layer.bias.set_value(paddle.randn(layer.bias.shape) * 0.1)
    model.linear_pred.weight.set_value(paddle.randn(model.linear_pred.weight.shape))
    model.eval()
    return model


def save(model, path):
    paddle.save(model.state_dict(), str(path))
    return path
