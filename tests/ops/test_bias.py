"""Biases against NumPy's broadcasting."""

import numpy as np
import paddle
import pytest

from paddleseg_segformer.ops import add_bias


@pytest.mark.parametrize("shape, axis", [([2, 6, 5], -1), ([4, 5], -1), ([2, 5, 6], 1)])
def test_value_and_gradient(shape, axis):
    rng = np.random.default_rng(0)
    x, bias, upstream = rng.normal(size=shape), rng.normal(size=[5]), rng.normal(size=shape)
    leaves = [paddle.to_tensor(array, stop_gradient=False) for array in (x, bias)]
    changed = leaves[0] * 1  # not a leaf, which must not change in place
    y = add_bias(changed, leaves[1], axis)
    assert (changed == y).all()
    (y * paddle.to_tensor(upstream)).sum().backward()
    np.testing.assert_allclose(y.numpy(), x + (bias[:, None] if axis == 1 else bias), rtol=1e-12)
    others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
    np.testing.assert_allclose(leaves[0].grad.numpy(), upstream)
    np.testing.assert_allclose(leaves[1].grad.numpy(), upstream.sum(axis=others), rtol=1e-12)
