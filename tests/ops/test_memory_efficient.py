"""Values, gradients and memory against Paddle's own operators."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddleseg_segformer.ops.memory_efficient import gelu_matmul, scale_samples


def results(function, x, other, upstream):
    leaves = [tensor.clone().detach() for tensor in (x, other)]
    for leaf, tensor in zip(leaves, (x, other)):
        leaf.stop_gradient = tensor.stop_gradient
    y = function(*leaves)
    paddle.autograd.backward([y], [upstream])
    return [y, *(leaf.grad for leaf in leaves if not leaf.stop_gradient)]


def assert_same(actual, expected, count):
    assert len(actual) == len(expected) == count
    for a, e in zip(actual, expected):
        np.testing.assert_allclose(a.numpy(), e.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_gelu_matmul(frozen):
    x, weight = paddle.randn([2, 6, 9], "float64"), paddle.randn([6, 4], "float64")
    for i, tensor in enumerate((x, weight)):
        tensor.stop_gradient = i in frozen
    upstream = paddle.randn([2, 9, 4], "float64")

    def plain(x, weight):
        return paddle.einsum("ncl,cd->nld", F.gelu(x), weight)

    actual = results(gelu_matmul, x, weight, upstream)
    assert_same(actual, results(plain, x, weight, upstream), count=3 - len(frozen))


def test_scale_samples():
    x, factors = paddle.randn([3, 4, 5], "float64"), paddle.to_tensor([0.0, 2.0, 1.5], "float64")
    x.stop_gradient = False
    factors, upstream = factors.reshape([3, 1, 1]), paddle.randn([3, 4, 5], "float64")
    actual = results(scale_samples, x, factors, upstream)
    assert_same(actual, results(paddle.multiply, x, factors, upstream), count=2)
    static = paddle.jit.to_static(scale_samples, full_graph=True)  # PaddleSeg's to_static_training
    assert_same(results(static, x, factors, upstream), actual, count=2)


def allocated():
    """Bytes of all tensors."""
    return paddle.base.core.host_memory_stat_current_value("Allocated", 0)


@pytest.mark.skipif(paddle.device.get_device() != "cpu", reason="only on the CPU")
def test_intermediate_values_are_not_saved():
    x, weight, factors = paddle.randn([2, 64, 999]), paddle.randn([64, 32]), paddle.ones([2, 1, 1])
    x.stop_gradient = weight.stop_gradient = False
    before = allocated()
    product = gelu_matmul(x, weight)
    assert allocated() - before < 1.1 * product.numpy().nbytes
    before = allocated()
    scaled = scale_samples(x * 1, factors)
    assert allocated() - before < 1.1 * scaled.numpy().nbytes
