"""Bilinear resizing against its definition and Paddle's operator."""

import contextlib

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from reference import bilinear

from paddleseg_segformer.ops import linear_weights, resize_and_sum, resize_bilinear
from paddleseg_segformer.ops.resize import bands

SIZES = [((4, 6), (16, 24)), ((5, 7), (13, 9)), ((8, 8), (3, 5)), ((1, 1), (4, 4)), ((6, 5),) * 2]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("source, target", SIZES)
def test_definition(source, target, align_corners):
    x = np.random.default_rng(0).normal(size=[2, 3, *source])
    actual = resize_bilinear(paddle.to_tensor(x), target, align_corners).numpy()
    np.testing.assert_allclose(actual, bilinear(x, target, align_corners), atol=1e-12)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("source, target", SIZES)
def test_operator(source, target, align_corners):
    """Values and gradient, within 1e-5: Paddle's operator computes positions in float32."""
    paddle.seed(0)
    x = paddle.randn([2, 3, *source])
    weights = paddle.randn([2, 3, *target])
    results = []
    for resize in (resize_bilinear, operator):
        leaf = x.clone().detach()
        leaf.stop_gradient = False
        out = resize(leaf, target, align_corners)
        (out * weights).sum().backward()
        results.append((out.numpy(), leaf.grad.numpy()))
    for actual, expected in zip(*results):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("frozen", [(), (1,)])
def test_sum_of_maps(frozen, align_corners):
    """Values and gradients are those of the maps one by one; one of them has the target's size."""
    paddle.seed(0)
    maps = [paddle.randn([2, 3, *source], "float64") for source in [(4, 6), (9, 16), (3, 5)]]
    upstream, results = paddle.randn([2, 3, 9, 16], "float64"), []
    for one_by_one in (False, True):
        leaves = [x.clone().detach() for x in maps]
        for i, leaf in enumerate(leaves):
            leaf.stop_gradient = i in frozen
        if one_by_one:
            out = sum(resize_bilinear(x, (9, 16), align_corners) for x in leaves)
        else:
            out = resize_and_sum(leaves, (9, 16), align_corners)
        out.backward(upstream)
        gradients = [leaf.grad for leaf in leaves]
        assert [i for i, gradient in enumerate(gradients) if gradient is None] == list(frozen)
        results.append([out, *(gradient for gradient in gradients if gradient is not None)])
    for actual, expected in zip(*results):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype, tolerance", [("float16", 5e-3), ("bfloat16", 4e-2)])
def test_half_precision(dtype, tolerance, monkeypatch):
    """Half precision in and out, in both directions, also within AMP, which is switched off.

    Tolerances: rounding of inputs, weights, and both products, each of half a unit in the last
    place of values up to 4; a GPU's products sum in float32, as those here.
    """
    product, casts = paddle.matmul, []

    def half_product(x, y, **options):  # has no kernel on a CPU
        assert x.dtype == y.dtype == getattr(paddle, dtype)
        return product(x.astype("float32"), y.astype("float32"), **options).astype(dtype)

    def auto_cast(**arguments):
        casts.append(arguments)
        return contextlib.nullcontext()

    paddle.seed(0)
    monkeypatch.setattr(paddle, "matmul", half_product)
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    x, upstream = paddle.randn([2, 3, 5, 7]).clip(-4, 4), paddle.randn([2, 3, 13, 16]).clip(-4, 4)
    results = []
    for resize, half in ((resize_bilinear, True), (operator, False)):
        leaf = x.astype(dtype) if half else x.clone()
        leaf.stop_gradient = False
        out = resize(leaf, (13, 16), False)
        out.backward(upstream.astype(out.dtype))
        assert out.dtype == leaf.grad.dtype == leaf.dtype
        results.append((out.astype("float32").numpy(), leaf.grad.astype("float32").numpy()))
    (out, gradient), (expected, expected_gradient) = results
    np.testing.assert_allclose(out, expected, atol=tolerance)
    np.testing.assert_allclose(gradient, expected_gradient, atol=8 * tolerance)  # larger sums
    assert casts == [{"enable": False}]


def operator(x, size, align_corners):
    return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)


def test_ramp():
    """At twice the size, samples lie a quarter of a pixel beside the source pixels."""
    x = paddle.to_tensor([[[[0.0, 4.0]]]])
    assert resize_bilinear(x, (1, 4))[0, 0].tolist() == [[0, 1, 3, 4]]


def test_bands_are_the_matrix_without_its_zeros():
    """Joined, they are the matrix; the first and last source of a band are used by it."""
    matrix = np.zeros([200, 90])
    matrix[:70], matrix[130:] = linear_weights(30, 70) @ np.eye(30, 90, 7), np.eye(70, 90, 20)
    joined, total = np.zeros_like(matrix), 0
    for band in bands(matrix, "float64"):
        if band is not None:
            weights = band.weights.numpy()
            assert weights[:, 0].any() and weights[:, -1].any()
            joined[band.target, band.source] = weights
            total += len(weights)
    np.testing.assert_array_equal(joined, matrix)
    assert 140 <= total <= 200
