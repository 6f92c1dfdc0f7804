"""Layers and their operators against NumPy and Paddle's own layers."""

import numpy as np
import paddle
import pytest

from paddleseg_segformer.ops import DropoutConv1x1, DropPath, GeluLinear
from paddleseg_segformer.ops.layers import add_bias


@pytest.mark.parametrize("shape, axis", [([2, 6, 5], -1), ([4, 5], -1), ([2, 5, 6], 1)])
def test_add_bias(shape, axis):
    rng = np.random.default_rng(0)
    x, bias, upstream = rng.normal(size=shape), rng.normal(size=[5]), rng.normal(size=shape)
    leaves = [paddle.to_tensor(array, stop_gradient=False) for array in (x, bias)]
    y = add_bias(leaves[0] * 1, leaves[1], axis)  # Paddle refuses to change a leaf in place
    (y * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(y.numpy(), x + (bias[:, None] if axis == 1 else bias), rtol=1e-12)
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    np.testing.assert_allclose(leaves[0].grad.numpy(), upstream)
    np.testing.assert_allclose(leaves[1].grad.numpy(), upstream.sum(axis=others), rtol=1e-12)


@pytest.mark.cpu_branch("a GPU adds biases out of place")
def test_biases_are_added_in_place():
    x = paddle.zeros([2, 6, 5])
    add_bias(x, paddle.arange(5.0))
    np.testing.assert_array_equal(x[1, 3], np.arange(5))


def test_gelu_linear_drops_hidden_values_in_training_only():
    paddle.seed(0)
    layer = GeluLinear(6, 6, drop_rate=0.5)
    layer.weight.set_value(paddle.eye(6))
    x = paddle.full([1, 6, 20, 30], 2.0)
    gelu = float(paddle.nn.functional.gelu(x).max())
    for training, values in ((True, [0, 2 * gelu]), (False, [gelu])):
        layer.train() if training else layer.eval()
        out = layer(x)
        assert out.shape == [1, 600, 6]
        np.testing.assert_allclose(np.unique(out.numpy()), values, rtol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    paddle.seed(0)
    branch = paddle.ones([4000, 3, 2])
    out = DropPath(0.25)(branch * 5, branch).numpy() - 5
    assert (out == out[:, :1, :1]).all()
    np.testing.assert_allclose(np.unique(out), [0, 4 / 3], rtol=1e-6)
    assert out.mean() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_drop_path_of_half_precision_keeps_samples_with_the_exact_probability(dtype, monkeypatch):
    """In bfloat16, 0.9 would be 0.8984 and its inverse 1.1094."""
    probabilities = []

    def bernoulli(p):
        probabilities.append(p)
        return paddle.ones_like(p)

    monkeypatch.setattr(paddle, "bernoulli", bernoulli)
    leaf, gradients = paddle.ones([2, 3, 2]), []
    leaf.stop_gradient = False
    x = leaf.astype(dtype)
    x.register_hook(gradients.append)
    out = DropPath(0.1)(paddle.zeros([2, 3, 2]), x)
    np.testing.assert_array_equal(probabilities[0].numpy(), np.full([1, 2, 1, 1], 0.9, "float32"))
    np.testing.assert_allclose(out.numpy(), np.full([2, 3, 2], 1 / 0.9), rtol=1e-6)
    out.sum().backward()
    assert gradients[0].dtype == x.dtype
    assert gradients[0].astype("float32").numpy().min() > 1.1


def test_dropout_drops_whole_channels_in_training_only():
    """With weights of 1, the output is the sum of the channels that are kept."""
    paddle.seed(0)
    layer = DropoutConv1x1(64, 2, drop_rate=0.25)
    layer.weight.set_value(paddle.ones_like(layer.weight))
    layer.bias.set_value(paddle.to_tensor([0.0, 1.0]))
    maps = paddle.ones([50, 64, 2, 3])
    layer.train()
    sums = layer(maps).numpy()
    assert (sums[:, :1] == sums[:, :1, :1, :1]).all()  # the same for all pixels of a sample
    np.testing.assert_allclose(sums[:, 1], sums[:, 0] + 1, rtol=1e-6)
    kept = sums[:, 0, 0, 0] * 0.75
    np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
    assert len(np.unique(kept.round())) > 5 and kept.mean() == pytest.approx(48, abs=1.5)
    layer.eval()
    np.testing.assert_array_equal(layer(maps).numpy()[:, 0], 64)
