"""Label maps at full size, without scores at full size."""

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from ..device import parallel_map
from .resize import bands


class WindowLogits(NamedTuple):
    """Logits, and how they become larger: ``row_weights @ logits @ col_weights.T`` for each class.

    Attributes:
        logits: float32 tensor ``[w, h, C]``.
        row_weights: Float array ``[H, h]``, as of ``linear_weights`` or a product of several; the
            faster, the fewer entries of a row are not 0.
        col_weights: Float array ``[W, w]``, likewise.
    """

    logits: paddle.Tensor
    row_weights: np.ndarray
    col_weights: np.ndarray

    @classmethod
    def from_logits(cls, logits, row_weights, col_weights):
        """A part of a model's logits, a float tensor ``[C, h, w]``."""
        logits = logits.transpose([2, 1, 0]).contiguous().astype("float32")
        return cls(logits, row_weights, col_weights)


def label_map(views):
    """The class of each pixel: where the mean over all views of the softmax is largest.

    Of one view, that is where the logits are. Full-size scores exist for a tile at a time.

    Args:
        views: A list; each view is a list of ``WindowLogits``s, whose sum is its logits.

    Returns:
        int32 tensor ``[H, W]``.
    """
    return _by_tiles(views, _labels)


def probability_map(views):
    """The mean over all views of the softmax; of ``label_map``'s argument.

    Returns:
        float32 tensor ``[H, W, C]``.
    """
    return _by_tiles(views, _probabilities)


@paddle.no_grad()
def _by_tiles(views, function):
    """What a function makes of each tile's scores, one ``[columns, rows, C]`` a view."""
    views = [[_prepare(part) for part in view] for view in views]
    _, rows, columns = views[0][0]
    tiles = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    found = parallel_map(lambda tile: function([_scores(v, *tile) for v in views]), tiles)
    step = len(columns)
    strips = [paddle.concat(found[i : i + step], 0) for i in range(0, len(found), step)]
    whole = paddle.concat(strips, 1)
    return whole.transpose([1, 0, *range(2, whole.ndim)]).contiguous()


def _labels(scores):
    total = scores[0] if len(scores) == 1 else sum(map(F.softmax, scores))
    return total.argmax(axis=-1, dtype="int32")


def _probabilities(scores):
    return sum(map(F.softmax, scores)) / len(scores)


def _prepare(part):
    """A part's logits, and the bands of their rows and columns."""
    return part.logits, bands(part.row_weights), bands(part.col_weights)


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
