"""Values, gradients and memory against Paddle's own operators."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from paddleseg_segformer.ops.memory_efficient import add_scaled, gelu_matmul


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


@pytest.mark.parametrize("frozen", [(), (0,), (1,)])
def test_add_scaled(frozen):
    """Also where x has other gradients, which are added to the upstream one."""
    x, branch = paddle.randn([3, 4, 5], "float64"), paddle.randn([3, 4, 5], "float64")
    for i, tensor in enumerate((x, branch)):
        tensor.stop_gradient = i in frozen
    factors = paddle.to_tensor([0.0, 2.0, 1.5], "float64").reshape([3, 1, 1])
    upstream = paddle.randn([3, 4, 5], "float64")

    def with_(function):
        return lambda x, branch: function(x * 1, branch, factors) ** 2 + x**3 + branch**3

    actual = results(with_(add_scaled), x, branch, upstream)
    plain = with_(lambda x, branch, factors: x + branch * factors)
    assert_same(actual, results(plain, x, branch, upstream), count=3 - len(frozen))
    static = paddle.jit.to_static(add_scaled, full_graph=True)  # PaddleSeg's to_static_training
    assert_same(results(with_(static), x, branch, upstream), actual, count=3 - len(frozen))


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float16", "float16")])
def test_gradients_of_add_scaled_have_their_inputs_types(dtypes):
    inputs, gradients = [], []
    for dtype in dtypes:
        leaf = paddle.ones([2, 3])
        leaf.stop_gradient = False
        inputs.append(leaf.astype(dtype))
        inputs[-1].register_hook(gradients.append)
    add_scaled(*inputs, paddle.full([2, 1], 0.5)).sum().backward()
    found = {gradient.dtype: gradient.astype("float32").numpy()[0, 0] for gradient in gradients}
    assert [gradient.dtype for gradient in gradients] and len(gradients) == 2
    assert set(found) == {tensor.dtype for tensor in inputs}


def allocated():
    """Bytes of all tensors."""
    return paddle.base.core.host_memory_stat_current_value("Allocated", 0)


@pytest.mark.cpu_branch("a GPU keeps gelu(x)")
def test_gelu_is_not_saved():
    x, weight = paddle.randn([2, 64, 999]), paddle.randn([64, 32])
    x.stop_gradient = weight.stop_gradient = False
    before = allocated()
    product = gelu_matmul(x, weight)
    assert allocated() - before < 1.1 * product.numpy().nbytes


def test_a_scaled_input_is_not_saved():
    x, factors = paddle.randn([2, 64, 999]), paddle.ones([2, 1, 1])
    x.stop_gradient = False
    before = allocated()
    total = add_scaled(x, x * 1, factors)
    assert allocated() - before < 1.1 * total.numpy().nbytes
