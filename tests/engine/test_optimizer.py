"""The gradient norm."""

import math

import numpy as np
import paddle

from paddleseg_segformer.engine.optimizer import gradient_norm


def test_gradient_norm_is_global():
    layers = paddle.nn.Sequential(paddle.nn.Linear(3, 4), paddle.nn.Linear(4, 5))
    assert gradient_norm(layers.parameters()) == 0
    random, squares = np.random.default_rng(0), 0.0
    for parameter in layers.parameters()[1:]:  # the first one has no gradient
        values = random.normal(size=parameter.shape).astype("float32")
        parameter.grad = paddle.to_tensor(values)
        squares += float((values.astype("float64") ** 2).sum())
    np.testing.assert_allclose(gradient_norm(layers.parameters()), math.sqrt(squares), rtol=1e-6)
    parameter.grad[0] = float("inf")
    assert gradient_norm(layers.parameters()) == math.inf
