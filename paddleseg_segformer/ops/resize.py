"""Bilinear resizing of feature maps: the one place for the whole project.

A bilinear resize is one linear map for each axis: a ``[target, source]`` matrix that has at most
two entries in a row. What is computed from upsampled maps goes by bands of such a matrix, so that
of the large maps there is never more than a tile.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

# A tile of 64 x 64 pixels with 150 classes, 2.4 MB, stays in a core's cache from one operator to
# the next; a smaller one spends more of its time on starting operators. A GPU has no such cache,
# and more to gain from large pieces.
TILE, GPU_TILE = 64, 512


def resize_bilinear(x, size, align_corners=False):
    """Resize maps bilinearly.

    On the CPU the resize is written as two matrix products, one for each axis: the same linear
    map as the operator's, with a gradient that is several times cheaper. In Paddle 3.3 a second
    backward pass through the same graph (``retain_graph``) ends the process.

    Args:
        x: Float tensor ``[N, C, h, w]``.
        size: ``(H, W)`` of the result.
        align_corners: Whether the corner pixels' centres, not their outer edges, are matched.

    Returns:
        Float tensor ``[N, C, H, W]``, of x's dtype.
    """
    if not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        return F.interpolate(x, size, mode="bilinear", align_corners=align_corners)
    size = int(size[0]), int(size[1])
    return x if tuple(x.shape[2:]) == size else _Resize.apply(x, size, align_corners)


class _Resize(PyLayer):
    """Two matrix products; unlike the products' own gradients, it keeps no map for backward."""

    @staticmethod
    def forward(ctx, x, size, align_corners):
        ctx.weights = [
            _weights_tensor(source, target, align_corners, x.dtype)
            for source, target in zip(x.shape[2:], size)
        ]
        return _transform(x, *ctx.weights, transpose=False)

    @staticmethod
    def backward(ctx, upstream):
        return _transform(upstream, *ctx.weights, transpose=True)


def _transform(x, down, across, transpose):
    """``down @ x @ across.T`` for each map ``[N, C, :, :]``, or with both matrices transposed."""
    n, c, h, w = x.shape
    x = paddle.matmul(x.reshape([n * c * h, w]), across, transpose_y=not transpose)
    x = paddle.matmul(down, x.reshape([n * c, h, -1]), transpose_x=transpose)
    return x.reshape([n, c, *x.shape[1:]])


def linear_weights(source, target, align_corners=False):
    """The matrix of one-dimensional linear interpolation: float64 array ``[target, source]``."""
    return resize_rows(np.eye(source), target, align_corners)


def resize_rows(matrix, target, align_corners=False):
    """Interpolate linearly between the rows of a float array ``[source, n]``: ``[target, n]``."""
    source = len(matrix)
    position = np.arange(target, dtype="float64")
    if align_corners:
        position *= (source - 1) / max(target - 1, 1)
    else:
        position = np.maximum((position + 0.5) * (source / target) - 0.5, 0)
    low = np.minimum(position.astype("int64"), source - 1)
    high = np.minimum(low + 1, source - 1)
    fraction = (position - low)[:, np.newaxis]
    return matrix[low] * (1 - fraction) + matrix[high] * fraction


@lru_cache(maxsize=16)
def _weights_tensor(source, target, align_corners, dtype):
    return paddle.to_tensor(linear_weights(source, target, align_corners), dtype=dtype)


class Band(NamedTuple):
    """Neighboring targets along one axis, and the sources that they are mixed from.

    Attributes:
        target, source: Slices of the axis before and after.
        weights: Float tensor ``[targets, sources]``.
    """

    target: slice
    source: slice
    weights: paddle.Tensor


def bands(weights, dtype="float32"):
    """Cut a matrix ``[target, source]`` into ``Band``s of a tile's number of targets.

    Where all of a band is 0, None stands in its place.
    """
    size = TILE if paddle.get_device() == "cpu" else GPU_TILE
    cut = []
    for start in range(0, len(weights), size):
        band = weights[start : start + size]
        used = np.flatnonzero(band.any(axis=0))
        if not used.size:
            cut.append(None)
            continue
        source = slice(int(used[0]), int(used[-1]) + 1)
        target = slice(start, start + len(band))
        cut.append(Band(target, source, paddle.to_tensor(band[:, source], dtype=dtype)))
    return cut
