"""BatchNorm, ReLU and a product by groups of channels: the results of Paddle's operators."""

import sys

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle import nn

module = sys.modules["paddleseg_segformer.ops.batch_norm"]


def reference(weight, x, norm):
    return paddle.matmul(weight, F.relu(norm(x)).flatten(2))


def run(function, samples, channels, norm):
    """Result, gradients and running statistics after two steps with the same parameters."""
    rng = np.random.default_rng(0)
    values = [[samples, channels, 5, 7], [samples, 3, channels], [channels], [channels]]
    values = [rng.normal(size=shape) + 0.5 for shape in values]
    x, weight, *parameters = (paddle.to_tensor(value, stop_gradient=False) for value in values)
    for parameter, value in zip((norm.weight, norm.bias), parameters):
        parameter.set_value(value)
    for _ in range(2):
        # As in the model, neither is a leaf.
        result = function(weight * 1, x * 2, norm)
        (result**3).sum().backward()
    tensors = result, x.grad, weight.grad, norm.weight.grad, norm.bias.grad
    return [tensor.numpy() for tensor in (*tensors, norm._mean, norm._variance)]


@pytest.fixture
def groups(use_threads, monkeypatch):
    """The groups that are processed with two threads."""
    apply, seen = module._group, []
    monkeypatch.setattr(module, "_group", lambda x, group: seen.append(group) or apply(x, group))
    use_threads(2)
    return seen


@pytest.mark.cpu_branch("a GPU uses Paddle's operators")
@pytest.mark.parametrize("samples, channels", [(1, 32), (2, 70), (3, 20)])
def test_results_are_those_of_paddles_operators(samples, channels, groups):
    options = {"momentum": 0.7, "epsilon": 0.1}
    paddle.set_default_dtype("float64")
    try:
        norms = [nn.BatchNorm2D(channels, **options) for _ in range(2)]
    finally:
        paddle.set_default_dtype("float32")
    expected = run(reference, samples, channels, norms[0])
    assert not groups
    actual = run(module.batch_norm_relu_matmul, samples, channels, norms[1])
    # In each step x forward, and x and its gradient backward.
    assert len(groups) == 2 * 3 * -(-channels // module.GROUP_SIZE)
    for value, of_operators in zip(actual, expected):
        np.testing.assert_allclose(value, of_operators, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ["evaluation", "frozen", "hook", "another layer", "no gradient"])
def test_other_layers_are_called(case, groups):
    """Also for the gradient, of which frozen parameters have none."""
    norm = nn.BatchNorm2D(4) if case != "another layer" else nn.GroupNorm(2, 4)
    if case == "evaluation":
        norm.eval()
    if case == "frozen":
        norm.weight.stop_gradient = True
    if case == "hook":
        norm.register_forward_post_hook(lambda layer, inputs, output: output * 2)
    x, weight = paddle.randn([2, 4, 3, 3]), paddle.randn([2, 5, 4])
    x.stop_gradient = weight.stop_gradient = case == "no gradient"
    result = module.batch_norm_relu_matmul(weight, x, norm)
    if case == "evaluation" or not hasattr(norm, "_mean"):
        np.testing.assert_allclose(result.numpy(), reference(weight, x, norm).numpy(), rtol=1e-5)
    if not result.stop_gradient:
        result.sum().backward()
    assert not groups
