"""Bilinear resizing of feature maps.

A bilinear resize is separable: along each axis it is a product with a ``[target, source]`` matrix
that has at most two nonzero entries per row. ``bands`` cuts such a matrix, for computing with
upsampled maps tile by tile.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

# On a CPU, a tile of 64 x 64 pixels with 150 classes, 2.4 MB, stays in a core's cache between
# operators; smaller tiles spend more time on calling operators. GPUs are faster with larger tiles.
TILE_SIZE, GPU_TILE_SIZE = 64, 512


def resize_bilinear(x, size, align_corners=False):
    """Resize feature maps bilinearly, as ``F.interpolate`` does.

    The resize is two matrix products, one for each axis, whose gradient is several times cheaper
    than the operator's. On a GPU it is also repeatable, and accurate in half precision: the
    operator's sums, by atomic additions, are neither.

    Args:
        x: Float tensor ``[N, C, h, w]``.
        size: ``(H, W)`` of the result.
        align_corners: Whether to align the centers of the corner pixels, not their outer edges.

    Returns:
        Float tensor ``[N, C, H, W]``, of x's dtype, in mixed precision too.
    """
    if paddle.in_dynamic_mode() and tuple(x.shape[2:]) == (int(size[0]), int(size[1])):
        return x
    return resize_and_sum([x], size, align_corners)


def resize_and_sum(maps, size, align_corners=False):
    """The sum of feature maps ``[N, C, h, w]`` after ``resize_bilinear``, which differ in h and w.

    The matrix product over the rows of all maps together sums them.
    """
    if not paddle.in_dynamic_mode():
        options = {"mode": "bilinear", "align_corners": align_corners}
        first, *others = (F.interpolate(x, size, **options) for x in maps)
        return sum(others, first)
    size = int(size[0]), int(size[1])
    return _ResizeAndSum.apply(*maps, size=size, align_corners=align_corners)


class _ResizeAndSum(PyLayer):
    """Matrix products that, unlike ``matmul``, save no feature map for the backward pass."""

    @staticmethod
    def forward(ctx, *maps, size, align_corners):
        dtype = maps[0].dtype
        heights, widths = zip(*(x.shape[2:] for x in maps))
        ctx.rows = _weights_tensor(heights, size[0], align_corners, dtype)
        ctx.columns = [_weights_tensor((w,), size[1], align_corners, dtype) for w in widths]
        ctx.heights, ctx.frozen = heights, [x.stop_gradient for x in maps]
        with paddle.amp.auto_cast(enable=False):  # which would compute float32 in half precision
            return _sum_of_products(maps, ctx.rows, ctx.columns)

    @staticmethod
    def backward(ctx, upstream):
        n, c, h, w = upstream.shape
        wide = paddle.matmul(ctx.rows, upstream.reshape([n * c, h, w]), transpose_x=True)
        wide = wide.reshape([n, c, -1, w]).split(ctx.heights, axis=2)
        gradients = [
            None if frozen else _times(x, columns, False)
            for x, columns, frozen in zip(wide, ctx.columns, ctx.frozen)
        ]
        return gradients[0] if len(gradients) == 1 else tuple(gradients)


def _sum_of_products(maps, row_weights, col_weights):
    """The sum of ``rows @ x @ columns.T`` of each map; ``row_weights`` are those of all maps."""
    wide = [_times(x, columns, True) for x, columns in zip(maps, col_weights)]
    n, c, _, w = wide[0].shape
    wide = wide[0] if len(wide) == 1 else paddle.concat(wide, axis=2)
    x = paddle.matmul(row_weights, wide.reshape([n * c, -1, w]))
    return x.reshape([n, c, *x.shape[1:]])


def _times(x, weights, transpose):
    """``x @ weights``, or ``x @ weights.T`` with ``transpose``, for ``x [N, C, h, w]``."""
    n, c, h, w = x.shape
    x = paddle.matmul(x.reshape([n * c * h, w]), weights, transpose_y=transpose)
    return x.reshape([n, c, h, -1])


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
def _weights_tensor(sources, target, align_corners, dtype):
    """The matrices of one or several sources, side by side."""
    weights = [linear_weights(source, target, align_corners) for source in sources]
    return paddle.to_tensor(np.concatenate(weights, axis=1), dtype=dtype)


class Band(NamedTuple):
    """A block of consecutive rows of a resize matrix, without the zero columns around it.

    Attributes:
        target: Slice of the axis after the resize.
        source: Slice of the axis before it.
        weights: Float tensor ``[targets, sources]``.
    """

    target: slice
    source: slice
    weights: paddle.Tensor


def bands(weights, dtype="float32"):
    """Cut a matrix ``[target, source]`` into ``Band``s of a tile's size; None for one of zeros."""
    size = TILE_SIZE if paddle.get_device() == "cpu" else GPU_TILE_SIZE
    result = []
    for start in range(0, len(weights), size):
        band = weights[start : start + size]
        nonzero = np.flatnonzero(band.any(axis=0))
        if not nonzero.size:
            result.append(None)
            continue
        source = slice(int(nonzero[0]), int(nonzero[-1]) + 1)
        target = slice(start, start + len(band))
        result.append(Band(target, source, paddle.to_tensor(band[:, source], dtype=dtype)))
    return result
