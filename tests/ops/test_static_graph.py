"""Operators in static graphs, as of an exported model, which use other code paths."""

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from reference import bilinear

from paddleseg_segformer.ops import resize_bilinear
from paddleseg_segformer.ops.layers import add_bias
from paddleseg_segformer.ops.memory_efficient import gelu_matmul

RNG = np.random.default_rng(0)
X, C, L = (RNG.normal(size=shape).astype("float32") for shape in ([2, 4, 6], [4], [6]))
WEIGHT, MAPS = (RNG.normal(size=shape).astype("float32") for shape in ([4, 3], [1, 2, 3, 4]))
GELU = F.gelu(paddle.to_tensor(X)).numpy()

CASES = {
    "bias": (add_bias, (X, L), X + L),
    "bias along axis 1": (lambda x, bias: add_bias(x, bias, 1), (X, C), X + C[:, None]),
    "GELU and matmul": (gelu_matmul, (X, WEIGHT), np.einsum("ncl,cd->nld", GELU, WEIGHT)),
    "resize": (lambda x: resize_bilinear(x, (5, 7)), (MAPS,), bilinear(MAPS, (5, 7))),
    "resize with corners": (
        lambda x: resize_bilinear(x, (5, 7), align_corners=True),
        (MAPS,),
        bilinear(MAPS, (5, 7), align_corners=True),
    ),
}


class Apply(paddle.nn.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, tensors):
        return self.function(*tensors)


@pytest.mark.parametrize("case", CASES)
def test_static_graph(case):
    function, arrays, expected = CASES[case]
    specs = [paddle.static.InputSpec(array.shape, "float32") for array in arrays]
    layer = paddle.jit.to_static(Apply(function), [specs], full_graph=True)
    actual = layer([paddle.to_tensor(array) for array in arrays]).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
