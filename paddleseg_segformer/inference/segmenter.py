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
from ..device import num_threads, parallel_map
from ..errors import InputError, one_line
from ..models import SegFormer
from ..ops import label_map, probability_map
from ..weights import Source, load_weights
from .sliding_window import SlidingWindows
from .test_config import TestConfig
from .tta import AugmentedInput, TestTimeAugmentation

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

    @paddle.no_grad()
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

    @paddle.no_grad()
    def with_probabilities(self, images: list[list[AugmentedInput]]) -> list[list[paddle.Tensor]]:
        """The label map and the mean softmax, float32 ``[H, W, classes]``, of each image."""
        return self._compute(images, label_map, probability_map)

    def _compute(self, images, *functions):
        """Run the model on all windows of each image, and apply each function to their logits."""
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
            with misfit_errors(self.model):
                logits = self.model(image)[0][0]
        return item.window_logits(row, column, logits)


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
