"""Loss and gradient of a step of B0 whose operators round as in half precision, on a CPU."""

import contextlib
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.autograd import PyLayer

from paddleseg_segformer.models import CrossEntropyLoss, SegFormer

LOSS_SCALE = 2.0**12  # float16 needs one: most gradients are below its smallest numbers


class Rounded(PyLayer):
    """A tensor, and its gradient, as float32 with the values of another dtype."""

    @staticmethod
    def forward(ctx, x, dtype):
        ctx.dtype = dtype
        return x.astype(dtype).astype("float32")

    @staticmethod
    def backward(ctx, upstream):
        return upstream.astype(ctx.dtype).astype("float32")


@contextlib.contextmanager
def operators_in(dtype):
    """The operators that training computes in half precision round operands and results to it."""

    def rounding(operator):
        def run(*operands, **options):
            operands = [
                Rounded.apply(x, dtype) if isinstance(x, paddle.Tensor) else x for x in operands
            ]
            return Rounded.apply(operator(*operands, **options), dtype)

        return run

    with contextlib.ExitStack() as patches:
        for module, name in ((paddle, "matmul"), (F, "conv2d"), (F, "gelu"), (F, "relu")):
            operator = rounding(getattr(module, name))
            patches.enter_context(mock.patch.object(module, name, operator))
        # The operators of a GPU.
        place = paddle.base.core.Place
        patches.enter_context(mock.patch.object(place, "is_cpu_place", lambda self: False))
        yield


def loss_and_gradients(dtype):
    paddle.seed(0)
    model, rng = SegFormer(19, "B0"), np.random.default_rng(0)
    images = paddle.to_tensor(rng.normal(size=[2, 3, 64, 96]).astype("float32"))
    labels = paddle.to_tensor(rng.integers(0, 19, [2, 64, 96]))
    paddle.seed(0)
    with operators_in(dtype) if dtype else contextlib.nullcontext():
        (logits,) = model(images, resize_logits=False)
    loss = CrossEntropyLoss()(logits, labels)
    (loss * LOSS_SCALE).backward()
    gradients = [p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None]
    return float(loss), np.concatenate(gradients)


@pytest.mark.integration
@pytest.mark.skipif(
    paddle.__version__.startswith("2."), reason="Paddle 2 truncates on a CPU instead of rounding"
)
@pytest.mark.parametrize("dtype, tolerance", [("float16", 0.01), ("bfloat16", 0.04)])
def test_loss_and_gradients(dtype, tolerance):
    """Against float32. Tolerance: about ten units in the last place, for 60 operators in a row."""
    loss, gradients = loss_and_gradients(None)
    half_loss, half_gradients = loss_and_gradients(dtype)
    assert half_loss == pytest.approx(loss, rel=1e-3) and half_loss != loss
    difference = np.linalg.norm(half_gradients - gradients)
    assert tolerance / 10 < difference / np.linalg.norm(gradients) < tolerance
