"""Label maps and probability maps at full size, from logits that are upsampled tile by tile."""

from typing import NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.utils.dlpack import to_dlpack

from ..device import parallel_map
from .resize import bands

# Classes from which on NumPy's argmax is faster than Paddle's on a CPU: half the time for 150.
MIN_NUMPY_CLASSES = 64


class WindowLogits(NamedTuple):
    """Logits of a window, and the weights that resize and place them in the whole image.

    At full size they are ``row_weights @ logits @ col_weights.T`` for each class.

    Attributes:
        logits: float32 tensor ``[h, w, C]``.
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
        return cls(channels_last(logits), row_weights, col_weights)


def channels_last(logits):
    """Float tensor ``[C, h, w]`` to a float32 tensor ``[h, w, C]``."""
    return logits.transpose([1, 2, 0]).contiguous().astype("float32")


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
    """Apply a function to the logits ``[rows, columns, C]`` of each input, tile by tile."""
    inputs = [
        [(w.logits, bands(w.row_weights), bands(w.col_weights)) for w in windows]
        for windows in inputs
    ]
    _, rows, columns = inputs[0][0]
    tiles = [(i, j) for i in range(len(rows)) for j in range(len(columns))]
    results = parallel_map(lambda tile: function([_tile_logits(w, *tile) for w in inputs]), tiles)
    step = len(columns)
    strips = [paddle.concat(results[i : i + step], 1) for i in range(0, len(results), step)]
    return paddle.concat(strips, 0)


def _labels(logits):
    scores = logits[0] if len(logits) == 1 else sum(map(F.softmax, logits))
    if scores.shape[-1] < MIN_NUMPY_CLASSES or not scores.place.is_cpu_place():
        return scores.argmax(axis=-1, dtype="int32")
    array = np.from_dlpack(_Exporter(scores))  # without a copy, unlike Tensor.numpy
    return paddle.to_tensor(array.argmax(axis=-1).astype("int32"))


class _Exporter:
    """DLPack's protocol for a tensor on a CPU; only some versions of Paddle have it."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return to_dlpack(self.tensor)

    def __dlpack_device__(self):
        return 1, 0  # kDLCPU


def _probabilities(logits):
    return sum(map(F.softmax, logits)) / len(logits)


def _tile_logits(windows, i, j):
    """The sum of the windows' logits in one tile, ``[rows, columns, C]``."""
    total = 0
    for logits, rows, columns in windows:
        row, column = rows[i], columns[j]
        if row is None or column is None:  # the window does not overlap this tile
            continue
        tile = paddle.matmul(column.weights, logits[row.source, column.source])
        height, width, c = tile.shape
        tile = paddle.matmul(row.weights, tile.reshape([height, width * c]))
        total = total + tile.reshape([-1, width, c])
    return total
