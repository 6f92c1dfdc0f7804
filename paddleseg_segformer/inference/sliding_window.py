"""Sliding-window inference: the windows of an image, and their logits at its original size."""

import numpy as np
import paddle

from ..ops import WindowLogits, linear_weights, resize_rows

MAX_MATRICES = 64  # kept per image; one is 1 MB for a window of 1024 pixels


class SlidingWindows:
    """The windows of an ``AugmentedInput``, and the resize of their logits to the original image.

    Without ``crop_size`` in the ``TestConfig``, there is one window, the whole image.

    Attributes:
        rows, columns: ``(start, end)`` of each row and column of windows, in pixels of the input.
        height, width: Size of the original image.
    """

    def __init__(self, item, test_config, align_corners):
        self._input, self._align_corners = item, align_corners
        height, width = self._size = item.image.shape[1:]
        self.height, self.width = item.trans_info[0][1] if item.trans_info else self._size
        crop, stride = test_config.crop_size, test_config.stride
        if crop is None:
            crop = stride = (width, height)
        self.rows = _windows(height, crop[1], stride[1])
        self.columns = _windows(width, crop[0], stride[0])
        self._matrices = {}
        # With a source of one pixel, the rows of the matrix are those that a window covers.
        self._covered = [
            {window: self._interpolation_matrix(1, window, axis) for window in windows}
            for axis, windows in enumerate((self.rows, self.columns))
        ]

    def overlapping(self, part, axis):
        """The rows (axis 0) or columns (axis 1) of windows that overlap a slice of the original."""
        return [
            window
            for window, (start, matrix) in self._covered[axis].items()
            if start < part.stop and part.start < start + len(matrix)
        ]

    def crop(self, row, column):
        """The model's input for a window: float32 tensor ``[1, C, h, w]``.

        None if the image is a ``Raster`` that has no data there.
        """
        flipped = [axis in self._input.flip for axis in (2, 3)]
        part = [
            slice(size - end, size - start) if flip else slice(start, end)
            for (start, end), size, flip in zip((row, column), self._size, flipped)
        ]
        window = self._input.image[(slice(None), *part)]
        if window is None:
            return None
        window = np.flip(window, [axis - 1 for axis in self._input.flip])
        if self._input.normalize is not None:
            sample = {"img": np.ascontiguousarray(window.transpose(1, 2, 0))}
            window = np.atleast_3d(self._input.normalize(sample)["img"]).transpose(2, 0, 1)
        return paddle.to_tensor(np.ascontiguousarray(window[None], dtype="float32"))

    def window_logits(self, row, column, logits, part):
        """``WindowLogits`` that add a window's logits to those of a part of the original image.

        Args:
            row, column: The window.
            logits: Tensor ``[h, w, C]``.
            part: The slices of the rows and of the columns; the window overlaps them.
        """
        weights = [self._weights(*x) for x in zip(logits.shape[:2], (row, column), (0, 1), part)]
        return WindowLogits(logits, *weights)

    def _weights(self, source_size, window, axis, part):
        """The rows of the interpolation matrix in a slice: float32 array ``[slice, source]``."""
        key = source_size, window, axis
        if key not in self._matrices:  # once per row and once per column of windows
            if len(self._matrices) >= MAX_MATRICES:
                self._matrices.clear()
            self._matrices[key] = self._interpolation_matrix(*key)
        start, matrix = self._matrices[key]
        weights = np.zeros([part.stop - part.start, source_size], "float32")
        first, last = max(start, part.start), min(start + len(matrix), part.stop)
        weights[first - part.start : last - part.start] = matrix[first - start : last - start]
        return weights

    def _interpolation_matrix(self, source_size, window, axis):
        """The matrix ``[target, source]`` that resizes and places a window along one axis.

        It divides by the number of overlapping windows, which at a pixel is the product of the
        numbers in its row and its column.

        Returns:
            The matrix without the rows of zeros around it, and the index of its first row.
        """
        start, end = window
        overlap = np.zeros([end - start, 1])
        for other_start, other_end in (self.rows, self.columns)[axis]:
            overlap[max(other_start - start, 0) : max(other_end - start, 0)] += 1
        weights = linear_weights(source_size, end - start, self._align_corners) / overlap
        if axis + 2 in self._input.flip:
            start, weights = self._size[axis] - end, weights[::-1]
        if self._input.trans_info:
            whole = np.zeros([self._size[axis], source_size])
            whole[start : start + len(weights)] = weights
            for kind, size in reversed(self._input.trans_info):
                # Anything but a resize is padding at the right and the bottom.
                whole = resize_rows(whole, size[axis]) if kind == "resize" else whole[: size[axis]]
            rows = np.flatnonzero(whole.any(axis=1))  # none if all of the window is padding
            start, end = (rows[0], rows[-1] + 1) if rows.size else (0, 0)
            weights = whole[start:end]
        return start, weights.astype("float32")


def _windows(length, size, stride):
    """Start and end of each window along one axis; the last one is shifted to end at the border."""
    starts = range(0, max(length - size, 0) + stride, stride)
    ends = [min(start + size, length) for start in starts]
    return [(max(end - size, 0), end) for end in ends]
