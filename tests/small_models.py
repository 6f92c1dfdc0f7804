"""A small SegFormer with random weights, and its files."""

import contextlib
from unittest import mock

import paddle
from paddle.nn.initializer import Constant, set_global_initializer
from reference import TINY

from paddleseg_segformer import MixVisionTransformer, MixVisionTransformer_B0, SegFormer
from paddleseg_segformer.models import mix_transformer, segformer

SMALLEST = {"embed_dims": [4, 8, 20, 32], "depths": [1, 1, 1, 1]}  # of a backbone


def small_model(classes=5, stage_projection="linear", backbone=MixVisionTransformer_B0):
    """Its logits differ from pixel to pixel, and its BatchNorm is not an identity."""
    paddle.seed(1)
    model = SegFormer(classes, backbone(), 32, stage_projection)
    randomize(model)
    model.linear_pred.weight.set_value(paddle.randn(model.linear_pred.weight.shape))
    model.eval()
    return model


def smallest_model(classes=5, stage_projection="linear"):
    """``small_model`` with the smallest backbone."""
    return small_model(classes, stage_projection, lambda: MixVisionTransformer(**SMALLEST))


def tiny_model(state, dropout=0.1, align_corners=False, **backbone):
    """A model with the arrays and sizes of ``reference.random_state``."""
    projection = "linear" if "linear_c1.proj.weight" in state else "conv_bn_relu"
    classes, width = state["linear_pred.weight"].shape[:2]
    encoder = MixVisionTransformer(**TINY, **backbone)
    model = SegFormer(classes, encoder, width, projection, dropout, align_corners)
    names = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert names == {name: list(value.shape) for name, value in state.items()}
    model.set_state_dict({name: paddle.to_tensor(value) for name, value in state.items()})
    model.eval()
    return model


@contextlib.contextmanager
def without_initialization():
    """All weights are 0: models are built in a tenth of the time."""
    nothing = {"init_weights": lambda layer: None}
    with mock.patch.multiple(mix_transformer, **nothing), mock.patch.multiple(segformer, **nothing):
        set_global_initializer(Constant(0.0))
        try:
            yield
        finally:
            set_global_initializer(None)


def randomize(model):
    """Randomize biases and BatchNorm, whose initial 0 and 1 would hide errors."""
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
