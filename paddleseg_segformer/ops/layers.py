"""Layers that are faster on a CPU than Paddle's, with the same parameters and results."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from .memory_efficient import gelu_matmul, scale_samples


class Linear(nn.Linear):
    """``paddle.nn.Linear``, with ``add_bias``."""

    def forward(self, x):
        x = paddle.matmul(x, self.weight)
        return x if self.bias is None else add_bias(x, self.bias)


class LinearToMap(nn.Linear):
    """Linear layer from tokens ``[N, h * w, C]`` to a feature map ``[N, D, h, w]``.

    The matrix product writes its result channels first, which saves a transpose.
    """

    def forward(self, x, h, w):
        x = paddle.matmul(self.weight, x, transpose_x=True, transpose_y=True)
        return add_bias(x, self.bias, axis=1).reshape([0, 0, h, w])


class GeluLinear(nn.Linear):
    """GELU, dropout, and a linear layer from a map ``[N, C, h, w]`` to tokens ``[N, h * w, D]``.

    The matrix product reads its operand channels first, which saves a transpose.
    """

    def __init__(self, in_features, out_features, drop_rate):
        super().__init__(in_features, out_features)
        self.drop_rate = drop_rate

    def forward(self, x):
        x = x.flatten(2)
        if self.drop_rate == 0:
            return add_bias(gelu_matmul(x, self.weight), self.bias)
        x = F.dropout(F.gelu(x), self.drop_rate, training=self.training)
        return add_bias(paddle.matmul(x, self.weight, transpose_x=True), self.bias)


class Conv2D(nn.Conv2D):
    """``paddle.nn.Conv2D``, with ``add_bias``."""

    def forward(self, x):
        x = F.conv2d(x, self.weight, None, self._stride, self._padding, groups=self._groups)
        h, w = x.shape[2:]
        return add_bias(x.flatten(2), self.bias, axis=1).reshape([0, 0, h, w])


class DropoutConv1x1(nn.Conv2D):
    """``paddle.nn.Dropout2D``, then a 1x1 convolution.

    Channels are dropped from a copy of the weights for each sample, which is much smaller than the
    sample's feature map.
    """

    def __init__(self, in_channels, out_channels, drop_rate):
        super().__init__(in_channels, out_channels, 1)
        self.dropout = nn.Dropout2D(drop_rate)

    def forward(self, x):
        n, c, h, w = x.shape
        weight = self.weight.flatten(1)
        weight = weight * self.dropout(paddle.ones([n, c, 1, 1])).reshape([n, 1, c])
        x = add_bias(paddle.matmul(weight, x.flatten(2)), self.bias, axis=1)
        return x.reshape([n, -1, h, w])


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al., ECCV 2016): drops the residual branch of whole samples.

    In training, a sample is kept with probability ``1 - rate`` and divided by it.
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        # Not in half precision: in bfloat16, 0.9 is 0.8984, and its inverse is not exact either.
        dtype = "float64" if x.dtype == paddle.float64 else "float32"
        kept = paddle.bernoulli(paddle.full([x.shape[0], 1, 1], keep, dtype))
        return scale_samples(x, kept / keep)


def add_bias(x, bias, axis=-1):
    """Add a bias to each channel; on a CPU in place.

    Paddle's CPU operators for broadcasting, and for the bias's gradient, take several times longer
    than a matrix product with a vector of ones.

    Args:
        x: Float tensor ``[N, ..., C]``, or ``[N, C, L]`` with ``axis=1``. In place, it must not be
            a leaf that has a gradient.
        bias: Float tensor ``[C]``.
        axis: The channels' axis, -1 or 1.

    Returns:
        Float tensor of x's shape.
    """
    channels_first = axis == 1
    if not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        # With AMP, x is in half precision; the sum must not be promoted to float32.
        return x + (bias.unsqueeze(1) if channels_first else bias).astype(x.dtype)
    if channels_first:
        ones = paddle.ones([x.shape[0], 1, x.shape[2]], x.dtype)
        return x.add_(paddle.matmul(bias.unsqueeze(1), ones))
    return x.add_(paddle.matmul(paddle.ones([*x.shape[:-1], 1], x.dtype), bias.unsqueeze(0)))
