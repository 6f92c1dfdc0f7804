"""The chunked and the fused attention against the plain one, which tests/models compares."""

import numpy as np
import paddle
import pytest

from paddleseg_segformer.ops import attention, scaled_dot_product_attention


def inputs():
    paddle.seed(0)
    return [paddle.randn([2, length, 2, 32]) for length in (24, 6, 6)]


def test_weights_are_dropped_in_training_only():
    """Equal keys weight all values equally; those kept are scaled by 1 / (1 - rate)."""
    paddle.seed(0)
    q, k, v = paddle.randn([1, 40, 1, 32]), paddle.ones([1, 32, 1, 32]), paddle.eye(32)
    for training, weights in ((True, {0, 4}), (False, {1})):
        x = scaled_dot_product_attention(q, k, v[None, :, None], 1.0, 0.75, training)
        assert set(np.unique((x.numpy() * 32).round(3)).tolist()) == weights


@pytest.mark.parametrize("chunk", [1, 40, 10**6])
def test_chunked(monkeypatch, chunk):
    plain = scaled_dot_product_attention(*inputs(), 0.3)
    monkeypatch.setattr(attention, "MAX_SCORES", chunk)
    with paddle.no_grad():
        chunked = scaled_dot_product_attention(*inputs(), 0.3)
    np.testing.assert_allclose(chunked.numpy(), plain.numpy(), atol=1e-6)


@pytest.mark.parametrize("scale", [0.3, 32**-0.5])
def test_fused(scale, monkeypatch):
    """Result and gradients; in float32, because a CPU has no half-precision kernels."""
    plain = with_gradients(scale)
    monkeypatch.setattr(attention, "FUSED_DTYPES", (paddle.float32,))
    for actual, expected in zip(with_gradients(scale), plain):
        assert np.any(expected)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def with_gradients(scale):
    tensors = inputs()
    for tensor in tensors:
        tensor.stop_gradient = False
    result = scaled_dot_product_attention(*tensors, scale)
    (result**2).sum().backward()
    return [result.numpy(), *(tensor.grad.numpy() for tensor in tensors)]


def test_not_fused_on_gpus_older_than_ampere(monkeypatch):
    """Some versions of Paddle would fail with "FlashAttention is unsupported"."""
    plain = scaled_dot_product_attention(*inputs(), 0.3)
    monkeypatch.setattr(attention, "FUSED_DTYPES", (paddle.float32,))
    monkeypatch.delattr(paddle.nn.functional, "scaled_dot_product_attention")
    monkeypatch.setattr(attention, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
    actual = scaled_dot_product_attention(*inputs(), 0.3)
    np.testing.assert_array_equal(actual.numpy(), plain.numpy())
