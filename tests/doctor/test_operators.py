"""The checks of operators pass, and fail with a defect in the operator."""

import numpy as np
import paddle
import pytest

from paddleseg_segformer import ops
from paddleseg_segformer.doctor import Context, operators

CONTEXT = Context("cpu", 0, None)


@pytest.mark.parametrize("name", operators.operators())
def test_operators_pass(name):
    result = operators.check_operator(CONTEXT, name, "float32")
    assert result.passed and max(result.details.values()) < 2e-6, result


def test_label_maps_and_stochastic_depth_pass():
    assert operators.check_label_map(CONTEXT).passed
    assert operators.check_drop_path(CONTEXT).passed


class ScaledGradient(paddle.autograd.PyLayer):
    """The identity with a gradient that is 1% too large."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, upstream):
        return upstream * 1.01


def corner_aligned(original):
    return lambda x, size: original(x, size, align_corners=True)


def scaled_gradient(original):
    return lambda x, *more: original(ScaledGradient.apply(x), *more)


def softer(original):
    return lambda q, k, v, scale: original(q, k, v, scale / 2)


def without_weights(original):
    return lambda logits, labels, weights: original(logits, labels, weights * 0 + 0.5)


def without_bias(original):
    def forward(self, x, *size):
        self._parameters["bias"] = self._parameters["bias"] * 0
        return original(self, x, *size)

    return forward


@pytest.mark.parametrize(
    "name, owner, attribute, defect",
    [
        ("resize", ops, "resize_bilinear", corner_aligned),
        ("resize", ops, "resize_bilinear", scaled_gradient),
        ("cross-entropy", ops, "upsampled_cross_entropy", scaled_gradient),
        ("cross-entropy", ops, "upsampled_cross_entropy", without_weights),
        ("attention", ops, "scaled_dot_product_attention", softer),
        ("GELU and linear layer", ops.GeluLinear, "forward", without_bias),
        ("depthwise convolution", ops.Conv2D, "forward", without_bias),
    ],
)
def test_operators_with_a_defect_fail(name, owner, attribute, defect, monkeypatch):
    monkeypatch.setattr(owner, attribute, defect(getattr(owner, attribute)))
    for bound in (None, operators.TF32_BOUND, operators.BOUNDS["bfloat16"]):
        assert not operators.check_operator(CONTEXT, name, "float32", bound).passed


def test_a_missing_gradient_is_an_error(monkeypatch):
    resize = ops.resize_bilinear
    monkeypatch.setattr(ops, "resize_bilinear", lambda x, size: resize(x, size).detach() + 0 * w)
    w = paddle.ones([1])
    w.stop_gradient = False
    with pytest.raises(ValueError, match=r"^no gradient of x$"):
        operators.check_operator(CONTEXT, "resize", "float32")


def test_label_maps_of_shifted_logits_fail(monkeypatch):
    label_map = ops.label_map
    monkeypatch.setattr(ops, "label_map", lambda inputs: label_map(inputs).roll(1, axis=0))
    assert not operators.check_label_map(CONTEXT).passed


@pytest.mark.parametrize(
    "defect",
    [
        lambda self, _, x: x * paddle.bernoulli(paddle.full([len(x), 1, 1], 0.75)),  # not divided
        lambda self, _, x: x * paddle.bernoulli(paddle.full(x.shape, 0.75)) / 0.75,  # per value
        lambda self, _, x: x * paddle.bernoulli(paddle.full([len(x), 1, 1], 0.5)) / 0.75,
        lambda self, _, x: x,
    ],
)
def test_stochastic_depth_with_a_defect_fails(defect, monkeypatch):
    monkeypatch.setattr(ops.DropPath, "forward", defect)
    assert not operators.check_drop_path(CONTEXT).passed


def test_nan_is_beyond_every_bound():
    result = operators.within({"a": 0.0, "b": float("nan")}, 1.0)
    assert not result.passed and "(b)" in result.measured


def test_relative_error():
    assert operators.relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0])) == 0.1
