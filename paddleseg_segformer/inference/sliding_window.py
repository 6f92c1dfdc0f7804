"""Sliding-window inference: the windows of an image, and their logits at its original size."""

import numpy as np
import paddle

from ..ops import WindowLogits, linear_weights, resize_rows


class SlidingWindows:
    """The windows of an ``AugmentedInput``, and the resize of their logits to the original image.

    Without ``crop_size`` in the ``TestConfig``, there is one window, the whole image.

    Attributes:
        rows, columns: ``(start, end)`` of each row and column of windows, in pixels of the input.
        height: Height of the original image.
    """

    def __init__(self, item, test_config, align_corners):
        self._input, self._align_corners = item, align_corners
        height, width = item.image.shape[1:]
        crop, stride = test_config.crop_size, test_config.stride
        if crop is None:
            crop = stride = (width, height)
        self.rows = _windows(height, crop[1], stride[1])
        self.columns = _windows(width, crop[0], stride[0])
        self._cache = {}
        # With a source of one pixel, the nonzero weights are the rows that a window covers.
        self._covered = {row: self._interpolation_matrix(1, row, 0)[:, 0] != 0 for row in self.rows}
        self.height = len(self._covered[self.rows[0]])

    def rows_in_band(self, band):
        """The rows of windows that overlap a slice of the original image's rows."""
        return [row for row in self.rows if self._covered[row][band].any()]

    def crop(self, row, column):
        """The model's input for a window: float32 tensor ``[1, C, h, w]``."""
        image = self._input.image[None]
        for axis in self._input.flip:
            image = np.flip(image, axis)
        window = image[:, :, slice(*row), slice(*column)]
        if self._input.normalize is not None:
            sample = {"img": np.ascontiguousarray(window[0].transpose(1, 2, 0))}
            normalized = np.atleast_3d(self._input.normalize(sample)["img"])
            window = normalized.transpose(2, 0, 1)[None]
        return paddle.to_tensor(np.ascontiguousarray(window, dtype="float32"))

    def window_logits(self, row, column, logits):
        """``WindowLogits`` that add a window's logits ``[C, h, w]`` to those of the image."""
        keys = [(logits.shape[1], row, 0), (logits.shape[2], column, 1)]
        for key in keys:  # once per row and once per column of windows
            if key not in self._cache:
                self._cache[key] = self._interpolation_matrix(*key)
        return WindowLogits.from_logits(logits, *(self._cache[key] for key in keys))

    def _interpolation_matrix(self, source_size, window, axis):
        """The matrix ``[target, source]`` that resizes and places a window along one axis.

        It divides by the number of overlapping windows, which at a pixel is the product of the
        numbers in its row and its column.
        """
        windows = (self.rows, self.columns)[axis]
        overlap = np.zeros([windows[-1][1], 1])
        for start, end in windows:
            overlap[start:end] += 1
        weights = np.zeros([len(overlap), source_size])
        weights[slice(*window)] = linear_weights(
            source_size, window[1] - window[0], self._align_corners
        )
        weights /= overlap
        if axis + 2 in self._input.flip:
            weights = weights[::-1]
        for kind, size in reversed(self._input.trans_info):
            # Anything but a resize is padding at the right and the bottom.
            resized = kind == "resize"
            weights = resize_rows(weights, size[axis]) if resized else weights[: size[axis]]
        return weights


def _windows(length, size, stride):
    """Start and end of each window along one axis; the last one is shifted to end at the border."""
    starts = range(0, max(length - size, 0) + stride, stride)
    ends = [min(start + size, length) for start in starts]
    return [(max(end - size, 0), end) for end in ends]
