"""Layers that are faster on a CPU than Paddle's, with the same parameters and results."""

import math
from functools import lru_cache

import paddle
import paddle.nn.functional as F
from paddle import nn

from .batch_norm import batch_norm_relu_matmul
from .memory_efficient import add_scaled, gelu_matmul


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
        return add_bias(x, self.bias, axis=1)


class DropoutConv1x1(nn.Conv2D):
    """``paddle.nn.Dropout2D``, then a 1x1 convolution.

    Channels are dropped from a copy of the weights for each sample, which is much smaller than the
    sample's feature map.
    """

    def __init__(self, in_channels, out_channels, drop_rate):
        super().__init__(in_channels, out_channels, 1)
        self.dropout = nn.Dropout2D(drop_rate)

    def forward(self, x, norm=None):
        """From ``[N, in_channels, h, w]`` to ``[N, out_channels, h, w]``.

        With ``norm``, a BatchNorm, first that and ReLU.
        """
        n, c, h, w = x.shape
        weight = self.weight.flatten(1)
        weight = weight * self.dropout(paddle.ones([n, c, 1, 1])).reshape([n, 1, c])
        if norm is None:
            x = paddle.matmul(weight, x.flatten(2))
        else:
            x = batch_norm_relu_matmul(weight, x, norm)
        return add_bias(x, self.bias, axis=1).reshape([n, -1, h, w])


class DropPath(nn.Layer):
    """Stochastic depth (Huang et al., ECCV 2016): drops the residual branch of whole samples.

    In training, a sample is kept with probability ``1 - rate`` and divided by it.
    """

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x, branch, factors=None):
        """``x + branch``, with the branch dropped in some samples.

        Args:
            x: Float tensor ``[N, L, C]``.
            branch: Float tensor of x's shape, the residual branch.
            factors: One of ``drop_path_factors``; None draws them here.
        """
        if not self.training or self.rate == 0:
            return x + branch
        if factors is None:
            (factors,) = drop_path_factors([self.rate], x)
        return add_scaled(x, branch, factors)


def drop_path_factors(rates, x):
    """Draw the factors of residual branches: 0 with probability ``rate``, else ``1 / (1 - rate)``.

    Args:
        rates: Rate of each branch.
        x: Float tensor with N samples.

    Returns:
        List of a tensor ``[N, 1, 1]`` for each branch, float64 for float64 x, else float32.
    """
    # Not in half precision: in bfloat16, 0.9 is 0.8984, and its inverse is not exact either.
    dtype = "float64" if x.dtype == paddle.float64 else "float32"
    kept = [1 - rate for rate in rates]
    keep = _keep_rates if paddle.in_dynamic_mode() else _keep_rates.__wrapped__
    keep = keep(tuple(kept), x.shape[0], dtype)
    return (paddle.bernoulli(keep) / keep).unbind()


@lru_cache(maxsize=16)
def _keep_rates(rates, samples, dtype):
    return paddle.to_tensor(rates, dtype).reshape([-1, 1, 1, 1]).tile([1, samples, 1, 1])


def add_bias(x, bias, axis=-1):
    """Add a bias to each channel; on a CPU in place.

    Paddle's CPU operators for broadcasting, and for the bias's gradient, take several times longer
    than a matrix product with a vector of ones.

    Args:
        x: Float tensor ``[N, ..., C]``, or ``[N, C, ...]`` with ``axis=1``. In place, it must not
            be a leaf that has a gradient.
        bias: Float tensor ``[C]``.
        axis: The channels' axis, -1 or 1.

    Returns:
        Float tensor of x's shape.
    """
    channels_first = axis == 1
    if not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        if channels_first:
            bias = bias.reshape([-1, *[1] * (x.ndim - 2)])
        # With AMP, x is in half precision; the sum must not be promoted to float32.
        return x + bias.astype(x.dtype)
    if channels_first:
        ones = paddle.ones([x.shape[0], 1, math.prod(x.shape[2:])], x.dtype)
        return x.add_(paddle.matmul(bias.unsqueeze(1), ones).reshape(x.shape))
    return x.add_(paddle.matmul(paddle.ones([*x.shape[:-1], 1], x.dtype), bias.unsqueeze(0)))
