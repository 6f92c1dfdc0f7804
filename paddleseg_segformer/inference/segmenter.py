"""Test-time augmentation and sliding-window inference: images to label maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddleseg import transforms as paddleseg
from paddleseg.cvlibs import Config

from ..config import build
from ..data.transforms import Compose, at_scale
from ..device import num_threads, parallel_map
from ..errors import InputError
from ..models import SegFormer
from ..ops import WindowLogits, label_map, linear_weights, probability_map, resize_rows
from ..weights import Source, load_weights
from .test_config import TestConfig

BAND_HEIGHT = 512  # rows of the original image labeled at a time in sliding-window inference


def load_model(config: Config, model_path: Source) -> paddle.nn.Layer:
    """Build a configuration's model in evaluation mode, with all its weights from a checkpoint.

    Raises:
        InputError: The checkpoint does not fit, or lacks weights of the model.
    """
    config = copy.deepcopy(config)
    for section in (config.dic["model"], config.dic["model"].get("backbone", {})):
        section.pop("pretrained", None)  # the checkpoint replaces them: download nothing
    (model,) = build(config, "model")
    missing = load_weights(model, model_path).missing
    if missing:
        reason = "it is a backbone's checkpoint, or was trained for another number of classes"
        raise InputError(f"{model_path}: has no {missing[0]} of this model; {reason}.")
    model.eval()
    return model


class AugmentedInput(NamedTuple):
    """An image at one scale and flip of test-time augmentation.

    ``normalize`` is PaddleSeg's or our ``Normalize``, applied to each window when it is cropped, so
    that a large image is never held as floats; or None.
    """

    image: np.ndarray  # uint8 or float32 [C, h, w], RGB, not flipped yet
    flip: Sequence[int]  # axes of [N, C, H, W] along which the model's input is flipped
    trans_info: list  # as from ``Compose``
    normalize: paddleseg.Normalize | None = None


class Segmenter:
    """A PaddleSeg model in evaluation mode with its validation transforms and ``TestConfig``.

    Validation and prediction both use it, so that they give the same label map of an image.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        transforms: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        test_config: TestConfig,
    ) -> None:
        transforms = list(transforms)
        normalizes = bool(transforms) and isinstance(transforms[-1], paddleseg.Normalize)
        self._normalize = transforms.pop() if normalizes else None
        self._transforms = [Compose(at_scale(transforms, scale)) for scale in test_config.scales]
        self.model, self.test_config = model, test_config

    def augmented_inputs(self, image: np.ndarray) -> list[AugmentedInput]:
        """Transform an image for each scale and flip, each scale from the original image.

        Args:
            image: uint8 array ``[H, W, 3]``, RGB, or grayscale ``[H, W]``.
        """
        samples = [transforms({"img": image}) for transforms in self._transforms]
        return [
            AugmentedInput(sample["img"], flip, sample["trans_info"], self._normalize)
            for sample in samples
            for flip in self.test_config.flips
        ]

    @paddle.no_grad()
    def __call__(self, images: list[list[AugmentedInput]]) -> list[paddle.Tensor]:
        """Segment images.

        Args:
            images: The ``augmented_inputs`` of each image; on a CPU, several images at a time are
                faster than one.

        Returns:
            A list of label maps: int32 tensors ``[H, W]`` at the images' original sizes. Logits of
            overlapping windows are averaged, augmented inputs by the mean of their softmax.
        """
        return [labels for (labels,) in self._compute(images, label_map)]

    @paddle.no_grad()
    def with_probabilities(self, images: list[list[AugmentedInput]]) -> list[list[paddle.Tensor]]:
        """The label map and the mean softmax, float32 ``[H, W, classes]``, of each image."""
        return self._compute(images, label_map, probability_map)

    def _compute(self, images, *functions):
        """For each image, the results of functions of its inputs' lists of ``WindowLogits``."""
        align_corners = getattr(self.model, "align_corners", False)
        images = [
            [SlidingWindows(item, self.test_config, align_corners) for item in inputs]
            for inputs in images
        ]
        if self.test_config.crop_size is not None:
            return [self._compute_in_bands(inputs, functions) for inputs in images]
        windows = [(item, item.rows[0], item.columns[0]) for inputs in images for item in inputs]
        logits = iter(self._window_logits(windows))
        by_image = ([[next(logits)] for _ in inputs] for inputs in images)
        return [[function(inputs) for function in functions] for inputs in by_image]

    def _compute_in_bands(self, inputs, functions):
        """Process an image by bands of rows, keeping only the logits of windows in the band."""
        results, cache = [], {}
        for start in range(0, inputs[0].height, BAND_HEIGHT):
            band = slice(start, start + BAND_HEIGHT)
            needed = [
                (i, row, column)
                for i, item in enumerate(inputs)
                for row in item.rows_in_band(band)
                for column in item.columns
            ]
            new = [key for key in needed if key not in cache]
            cache = {key: cache[key] for key in needed if key in cache}
            cache.update(zip(new, self._window_logits([(inputs[i], *w) for i, *w in new])))
            logits = [[] for _ in inputs]
            for (i, *_), window in cache.items():
                logits[i].append(window._replace(row_weights=window.row_weights[band]))
            results.append([function(logits) for function in functions])
            del logits  # releases the windows that the next band drops
        return [paddle.concat(bands) for bands in zip(*results)]

    def _window_logits(self, windows):
        """``WindowLogits`` of each (``SlidingWindows``, row, column)."""
        # A thread per window, unless most threads would be idle: then all share each operator.
        apply = parallel_map if 2 * len(windows) > num_threads() else map
        return list(apply(self._run_window, windows))

    def _run_window(self, window):
        item, row, column = window
        image = item.crop(row, column)
        if isinstance(self.model, SegFormer):  # logits at stride 4, without the model's upsampling
            logits = self.model.decode(self.model.backbone(image))[0]
        else:
            logits = self.model(image)[0][0]
        return item.window_logits(row, column, logits)


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
        self._covered = {row: self._compute_weights(1, row, 0)[:, 0] != 0 for row in self.rows}
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
                self._cache[key] = self._compute_weights(*key)
        return WindowLogits.from_logits(logits, *(self._cache[key] for key in keys))

    def _compute_weights(self, source, window, axis):
        """Resize weights ``[target, source]`` from a window to the original image, along one axis.

        They include the mean over overlapping windows: the number of windows at a pixel is the
        product of the numbers in its row and its column.
        """
        windows = (self.rows, self.columns)[axis]
        overlap = np.zeros([windows[-1][1], 1])
        for start, end in windows:
            overlap[start:end] += 1
        weights = np.zeros([len(overlap), source])
        weights[slice(*window)] = linear_weights(source, window[1] - window[0], self._align_corners)
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
