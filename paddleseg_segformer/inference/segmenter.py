"""Inference: images to label maps, with test-time augmentation and sliding windows."""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import paddle
from paddleseg.cvlibs import Config

from ..config import build
from ..device import parallel_imap
from ..errors import InputError, one_line
from ..models import SegFormer
from ..ops import channels_last, label_map, probability_map
from ..weights import Source, load_weights
from .sliding_window import SlidingWindows
from .test_config import TestConfig
from .tta import AugmentedInput, TestTimeAugmentation

MAX_PARALLEL_INPUTS = 8  # augmented inputs, of several images at a time
BAND_HEIGHT = 512  # rows of the original image labeled at a time in sliding-window inference


def load_model(config: Config, model_path: Source) -> paddle.nn.Layer:
    """Build a configuration's model in evaluation mode, with all its weights from a checkpoint.

    Raises:
        InputError: The checkpoint does not fit, or lacks weights of the model.
    """
    config = copy.deepcopy(config)
    for section in (config.dic["model"], config.dic["model"].get("backbone", {})):
        if "pretrained" in section:
            section["pretrained"] = None  # the checkpoint replaces them: download nothing
    (model,) = build(config, "model")
    missing = load_weights(model, model_path).missing
    if missing:
        reason = "it is a backbone's checkpoint, or was trained for another number of classes"
        raise InputError(f"{model_path}: has no {missing[0]} of this model; {reason}.")
    model.eval()
    return model


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
        self.augmented_inputs = TestTimeAugmentation(transforms, test_config)
        self.model, self.test_config = model, test_config

    @property
    def max_images(self) -> int:
        """The most images to segment at a time; more would need much memory.

        The windows and augmented inputs of a single image are segmented in parallel, too.
        """
        if self.test_config.crop_size is not None:
            return 1
        inputs = len(self.test_config.scales) * len(self.test_config.flips)
        return max(1, MAX_PARALLEL_INPUTS // inputs)

    def __call__(self, images: list[list[AugmentedInput]]) -> list[paddle.Tensor]:
        """Segment images.

        Args:
            images: The ``augmented_inputs`` of each image; on a CPU, several images at a time are
                faster than one.

        Returns:
            A list of label maps: int32 tensors ``[H, W]`` at the images' original sizes. Logits of
            overlapping windows are averaged, and the softmax of augmented inputs.
        """
        return [labels for (labels,) in self._compute(images, label_map)]

    def with_probabilities(self, images: list[list[AugmentedInput]]) -> list[list[paddle.Tensor]]:
        """The label map and the mean softmax, float32 ``[H, W, classes]``, of each image."""
        return self._compute(images, label_map, probability_map)

    def strips(
        self, inputs: list[AugmentedInput], test_config: TestConfig, width: int
    ) -> Iterator[tuple[slice, slice, paddle.Tensor]]:
        """Segment an image by sliding windows, part by part, as ``__call__`` does at once.

        Only the logits of windows that overlap a part are kept. The model runs again on windows
        that overlap two strips.

        Args:
            inputs: The image with each flip, from ``augmented_inputs.of_raster``.
            test_config: The sliding windows.
            width: Width of a vertical strip in pixels, a multiple of 512; with it, the label map
                does not depend on the strips.

        Yields:
            The rows and the columns of each part, strip by strip from top to bottom, and its label
            map, an int32 tensor.
        """
        grids = self._grids(inputs, test_config)
        for left in range(0, grids[0].width, width):
            columns = slice(left, min(left + width, grids[0].width))
            for rows, (labels,) in self._by_band(grids, columns, [label_map]):
                yield rows, columns, labels

    def _grids(self, inputs, test_config):
        align_corners = getattr(self.model, "align_corners", False)
        return [SlidingWindows(item, test_config, align_corners) for item in inputs]

    def _compute(self, images, *functions):
        """Run the model on all windows of each image, and apply each function to their logits."""
        images = [self._grids(inputs, self.test_config) for inputs in images]
        if self.test_config.crop_size is not None:
            return [self._compute_in_bands(inputs, functions) for inputs in images]
        windows = [(item, item.rows[0], item.columns[0]) for inputs in images for item in inputs]
        logits = iter(self._window_logits(windows))
        results = []
        for inputs in images:
            whole = slice(0, inputs[0].height), slice(0, inputs[0].width)
            by_input = [
                [item.window_logits(item.rows[0], item.columns[0], next(logits), whole)]
                for item in inputs
            ]
            results.append([function(by_input) for function in functions])
        return results

    def _compute_in_bands(self, inputs, functions):
        columns = slice(0, inputs[0].width)
        results = [result for _, result in self._by_band(inputs, columns, functions)]
        return [paddle.concat(bands) for bands in zip(*results)]

    def _by_band(self, inputs, columns, functions):
        """Process an image by bands of rows, keeping only the logits of windows in the band.

        Yields the slice of the rows, and the result of each function for these rows and columns.
        """
        cache, height = {}, inputs[0].height
        for start in range(0, height, BAND_HEIGHT):
            band = slice(start, min(start + BAND_HEIGHT, height))
            needed = [
                (i, row, column)
                for i, item in enumerate(inputs)
                for row in item.overlapping(band, 0)
                for column in item.overlapping(columns, 1)
            ]
            new = [key for key in needed if key not in cache]
            cache = {key: cache[key] for key in needed if key in cache}
            cache.update(zip(new, self._window_logits([(inputs[i], *w) for i, *w in new])))
            by_input = [[] for _ in inputs]
            for (i, *window), logits in cache.items():
                part = inputs[i].window_logits(*window, logits, (band, columns))
                by_input[i].append(part)
            result = [function(by_input) for function in functions]
            del by_input, logits, part  # releases the windows that the next band drops
            yield band, result

    def _window_logits(self, windows):
        """The logits of each (``SlidingWindows``, row, column): tensors ``[h, w, C]``."""
        return list(parallel_imap(self._run_window, windows, len(windows)))

    def _run_window(self, window):
        item, row, column = window
        image = item.crop(row, column)
        if image is None:  # the labels of pixels without data do not matter
            return paddle.zeros([1, 1, 1])
        if isinstance(self.model, SegFormer):  # logits at stride 4, without the model's upsampling
            logits = self.model.decode(self.model.backbone(image))[0]
        else:
            with misfit_errors(self.model):
                logits = self.model(image)[0][0]
        return channels_last(logits)


@contextlib.contextmanager
def misfit_errors(model: paddle.nn.Layer) -> Iterator[None]:
    """Raise errors of a PaddleSeg model's forward pass as ``InputError`` that names config keys.

    PaddleSeg does not check that the channels of a backbone's feature maps are those that a model
    takes, nor does Paddle before the first image. Errors of a user's model keep their traceback.
    """
    try:
        yield
    except (AssertionError, IndexError, ValueError) as error:
        is_paddleseg = type(model).__module__.partition(".")[0] == "paddleseg"
        if not is_paddleseg or "data_type" in str(error):  # PointRend concatenates int64 and int32
            raise
        arguments = inspect.signature(type(model)).parameters
        channels = [name for name in arguments if re.search("backbone|channels|indices|dims", name)]
        keys = ", ".join(f"model.{name}" for name in channels) or "its arguments"
        counts = getattr(getattr(model, "backbone", None), "feat_channels", None)
        maps = f", whose feature maps have {', '.join(map(str, counts))} channels" if counts else ""
        reason = one_line(error).partition(" [Hint:")[0]
        raise InputError(
            f"model: {type(model).__name__} does not fit the images or its backbone{maps}; check "
            f"{keys}: {reason}"
        ) from error
