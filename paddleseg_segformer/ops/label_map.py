"""Label maps at full size, without scores at full size."""

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from ..runtime import parallel_map
from .resize import bands


class Part(NamedTuple):
    """Logits, and how they become larger: ``down @ logits @ across.T`` for each class.

    Attributes:
        logits: Float tensor ``[C, h, w]``.
        down, across: Float arrays ``[H, h]`` and ``[W, w]``, as of ``linear_weights`` or products
            of several; the faster, the fewer entries of a row are not 0.
    """

    logits: paddle.Tensor
    down: np.ndarray
    across: np.ndarray


@paddle.no_grad()
def label_map(views):
    """The class of each pixel: where the mean over all views of the softmax is largest.

    Of one view, that is where the logits are. Full-size scores exist for a tile at a time.

    Args:
        views: A list; each view is a list of ``Part``s, whose sum is its logits.

    Returns:
        int32 tensor ``[H, W]``.
    """
    views = [[_prepare(part) for part in view] for view in views]
    _, rows, columns = views[0][0]
    tiles = [(views, i, j) for i in range(len(rows)) for j in range(len(columns))]
    labels = parallel_map(_tile, tiles)
    step = len(columns)
    strips = [paddle.concat(labels[i : i + step], 0) for i in range(0, len(labels), step)]
    return paddle.concat(strips, 1).transpose([1, 0]).contiguous()


def _prepare(part):
    """Logits ``[w, h, C]``, float32, and the bands of their rows and columns."""
    logits = part.logits.transpose([2, 1, 0]).contiguous().astype("float32")
    return logits, bands(part.down), bands(part.across)


def _tile(job):
    """Labels ``[columns, rows]`` of one tile."""
    views, i, j = job
    if len(views) == 1:
        scores = _scores(views[0], i, j)
    else:
        scores = sum(F.softmax(_scores(view, i, j)) for view in views)
    return scores.argmax(axis=-1, dtype="int32")


def _scores(parts, i, j):
    """Logits ``[columns, rows, C]`` of a tile."""
    total = 0
    for logits, rows, columns in parts:
        row, column = rows[i], columns[j]
        if row is None or column is None:  # a window that does not see this tile
            continue
        scores = paddle.matmul(row.weights, logits[column.source, row.source])
        width, height, c = scores.shape
        scores = paddle.matmul(column.weights, scores.reshape([width, height * c]))
        total = total + scores.reshape([-1, height, c])
    return total
