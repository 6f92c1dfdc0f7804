"""Label maps and probability maps at full size, from logits that are upsampled tile by tile."""

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F

from ..device import parallel_map
from .resize import bands


class WindowLogits(NamedTuple):
    """Logits of a window, and the weights that resize and place them in the whole image.

    At full size they are ``row_weights @ logits @ col_weights.T`` for each class.

    Attributes:
        logits: float32 tensor ``[w, h, C]``.
        row_weights: Float array ``[H, h]``, such as of ``linear_weights`` or a product of several;
            the fewer nonzero entries a row has, the faster.
        col_weights: Float array ``[W, w]``, likewise.
    """

    logits: paddle.Tensor
    row_weights: np.ndarray
    col_weights: np.ndarray

    @classmethod
    def from_logits(cls, logits, row_weights, col_weights):
        """From a float tensor ``[C, h, w]``."""
        logits = logits.transpose([2, 1, 0]).contiguous().astype("float32")
        return cls(logits, row_weights, col_weights)


def label_map(inputs):
    """The argmax over the classes of the mean softmax over the augmented inputs of an image.

    For one input, that is the argmax of its logits. Only one tile per thread is held at full size.

    Args:
        inputs: For each augmented input, a list of ``WindowLogits``; their sum is its logits.

    Returns:
        int32 tensor ``[H, W]`` of class indices.
    """
    return _map_tiles(inputs, _labels)


def probability_map(inputs):
    """The mean softmax over the augmented inputs of an image.

    Args:
        inputs: As of ``label_map``.

    Returns:
        float32 tensor ``[H, W, C]``.
    """
    return _map_tiles(inputs, _probabilities)


def _map_tiles(inputs, function):
    """Apply a function to the logits ``[columns, rows, C]`` of each input, tile by tile."""
    inputs = [
        [(w.logits, bands(w.row_weights), bands(w.col_weights)) for w in windows]
        for windows in inputs
    ]
    _, rows, columns = inputs[0][0]
    tiles = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    results = parallel_map(lambda tile: function([_tile_logits(w, *tile) for w in inputs]), tiles)
    step = len(columns)
    strips = [paddle.concat(results[i : i + step], 0) for i in range(0, len(results), step)]
    whole = paddle.concat(strips, 1)
    return whole.transpose([1, 0, *range(2, whole.ndim)]).contiguous()


def _labels(logits):
    scores = logits[0] if len(logits) == 1 else sum(map(F.softmax, logits))
    return scores.argmax(axis=-1, dtype="int32")


def _probabilities(logits):
    return sum(map(F.softmax, logits)) / len(logits)


def _tile_logits(windows, i, j):
    """The sum of the windows' logits in one tile, ``[columns, rows, C]``."""
    total = 0
    for logits, rows, columns in windows:
        row, column = rows[i], columns[j]
        if row is None or column is None:  # the window does not overlap this tile
            continue
        tile = paddle.matmul(row.weights, logits[column.source, row.source])
        width, height, c = tile.shape
        tile = paddle.matmul(column.weights, tile.reshape([width, height * c]))
        total = total + tile.reshape([-1, height, c])
    return total
