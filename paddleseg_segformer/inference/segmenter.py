"""Images to label maps."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import paddle
from paddleseg.cvlibs import Config
from paddleseg.transforms import Compose

from ..config import build
from ..data.transforms import Normalize, at_scale
from ..device import num_threads, parallel_map
from ..errors import InputError
from ..models import SegFormer
from ..ops import WindowLogits, label_map, linear_weights, probability_map, resize_rows
from ..weights import Source, load_weights
from .test_config import TestConfig


def load_model(config: Config, model_path: Source) -> paddle.nn.Layer:
    """Build a configuration's model in evaluation mode, with all its weights from a checkpoint.

    Raises:
        InputError: The checkpoint does not fit, or lacks a part of the model.
    """
    config = copy.deepcopy(config)
    for section in (config.dic["model"], config.dic["model"].get("backbone", {})):
        section.pop("pretrained", None)  # the checkpoint has it all: fetch nothing
    (model,) = build(config, "model")
    missing = load_weights(model, model_path).missing
    if missing:
        raise InputError(
            f"{model_path}: has no {missing[0]} of this model; it is a backbone's checkpoint, or "
            "was trained for another number of classes."
        )
    model.eval()
    return model


# Rows of the original image that are labeled at a time, where it is seen in windows.
BAND = 512


class AugmentedInput(NamedTuple):
    """One look at an image.

    Attributes:
        image: Array ``[3, h, w]``; of floats, or of bytes that ``normalize`` makes floats of.
        flip: Axes, of ``[N, C, H, W]``, that are mirrored before the model sees it.
        trans_info: What the transforms did to the image's size, as PaddleSeg notes it.
        normalize: Our ``Normalize``, which is left to the windows of a large image, or None.
    """

    image: np.ndarray
    flip: list
    trans_info: list
    normalize: Normalize | None = None


class Segmenter:
    """A model, and how it looks at images.

    Args:
        model: A PaddleSeg model in evaluation mode.
        transforms: PaddleSeg's ``Compose`` of the validation transforms.
        test_config: ``TestConfig``.
    """

    def __init__(
        self, model: paddle.nn.Layer, transforms: Compose, test_config: TestConfig
    ) -> None:
        self.model, self.test_config = model, test_config
        self.transforms = [at_scale(transforms, scale) for scale in test_config.scales]

    def views(
        self, image: np.ndarray, transformed: dict[str, Any] | None = None
    ) -> list[AugmentedInput]:
        """All looks at one image, every scale made from the original.

        Args:
            image: uint8 array ``[H, W, 3]``, BGR as OpenCV reads it.
            transformed: The transforms' result for it, where there is one already.
        """
        views = []
        for scale, transforms in zip(self.test_config.scales, self.transforms):
            if scale == 1 and transformed is not None:
                look = AugmentedInput(transformed["img"], [], transformed["trans_info"])
            elif [type(t) for t in transforms.transforms] == [Normalize]:
                colors = image[:, :, ::-1] if transforms.to_rgb else image
                look = AugmentedInput(colors.transpose(2, 0, 1), [], [], transforms.transforms[0])
            else:
                sample = transforms({"img": image.astype("float32"), "trans_info": []})
                look = AugmentedInput(sample["img"], [], sample["trans_info"])
            views += [look._replace(flip=flip) for flip in self.test_config.flips]
        return views

    @paddle.no_grad()
    def __call__(self, images: list[list[AugmentedInput]]) -> list[paddle.Tensor]:
        """Label the pixels of images.

        Args:
            images: A list with the ``views`` of each; several are faster than one on a CPU.

        Returns:
            A list of int32 tensors ``[H, W]`` of class indices, at the images' original sizes. Of
            several views, the mean of their softmax decides; of windows, the mean of their logits.
        """
        return [labels for (labels,) in self._compute(images, label_map)]

    @paddle.no_grad()
    def with_probabilities(self, images: list[list[AugmentedInput]]) -> list[list[paddle.Tensor]]:
        """Of each image what a call gives, and the views' mean softmax, ``[H, W, classes]``."""
        return self._compute(images, label_map, probability_map)

    def _compute(self, images, *functions):
        """Of each image what each function makes of its views, each a list of ``WindowLogits``s."""
        align_corners = getattr(self.model, "align_corners", False)
        images = [
            [SlidingWindows(v, self.test_config, align_corners) for v in views] for views in images
        ]
        if self.test_config.crop_size is not None:
            return [self._from_the_top(views, functions) for views in images]
        parts = iter(self._parts([(v, v.rows[0], v.columns[0]) for views in images for v in views]))
        parts = [[[next(parts)] for _ in views] for views in images]
        return [[function(of_image) for function in functions] for of_image in parts]

    def _from_the_top(self, views, functions):
        """Work on an image a band of rows at a time, holding no windows but those that see it."""
        strips, held = [], {}
        for start in range(0, views[0].height, BAND):
            band = slice(start, start + BAND)
            needed = [
                (i, row, column)
                for i, view in enumerate(views)
                for row in view.rows_seen_in(band)
                for column in view.columns
            ]
            new = [key for key in needed if key not in held]
            held = {key: held[key] for key in needed if key in held}
            held.update(zip(new, self._parts([(views[i], *window) for i, *window in new])))
            parts = [[] for _ in views]
            for (i, *_), part in held.items():
                parts[i].append(part._replace(row_weights=part.row_weights[band]))
            strips.append([function(parts) for function in functions])
            del parts  # else it holds the windows that the next band lets go
        return [paddle.concat(bands) for bands in zip(*strips)]

    def _parts(self, windows):
        """What each of (view, row, column) adds to its image's logits."""
        # A thread for each, unless most would have none: then all work on one.
        apply = parallel_map if 2 * len(windows) > num_threads() else map
        return list(apply(self._part, windows))

    def _part(self, window):
        view, row, column = window
        return view.part(row, column, self._logits(view.crop(row, column)))

    def _logits(self, image):
        """Logits ``[C, h, w]``, of a SegFormer at the size at which its head makes them."""
        if isinstance(self.model, SegFormer):
            return self.model.decode(self.model.backbone(image))[0]
        return self.model(image)[0][0]


class SlidingWindows:
    """The windows of a view, and the way back from their logits to the original image.

    Attributes:
        rows, columns: (start, end) of the windows, in pixels of the view; one if it is seen whole.
        height: Of the original image.
    """

    def __init__(self, view, test_config, align_corners):
        self.view, self.align_corners = view, align_corners
        height, width = view.image.shape[1:]
        crop, stride = test_config.crop_size, test_config.stride
        if crop is None:
            crop = stride = (width, height)
        self.rows = _windows(height, crop[1], stride[1])
        self.columns = _windows(width, crop[0], stride[0])
        self._ways = {}
        # Of one value a window, the way back says which pixels it reaches.
        self.reaches = {row: self._compute_way(1, row, 0)[:, 0] != 0 for row in self.rows}
        self.height = len(self.reaches[self.rows[0]])

    def rows_seen_in(self, band):
        """The windows' rows that reach into a slice of the original's rows."""
        return [row for row in self.rows if self.reaches[row][band].any()]

    def crop(self, row, column):
        """A window as the model is shown it: ``[1, 3, h, w]``."""
        image = self.view.image[None]
        for axis in self.view.flip:
            image = np.flip(image, axis)
        window = np.ascontiguousarray(image[:, :, slice(*row), slice(*column)])
        if self.view.normalize is not None:
            colors = np.ascontiguousarray(window[0].transpose(1, 2, 0))
            window = self.view.normalize({"img": colors})["img"].transpose(2, 0, 1)[None]
        return paddle.to_tensor(window.astype("float32", copy=False))

    def part(self, row, column, logits):
        """What a window's logits ``[C, h, w]`` add to those of the original image."""
        _, h, w = logits.shape
        row_weights, col_weights = self._way_back(h, row, 0), self._way_back(w, column, 1)
        return WindowLogits.from_logits(logits, row_weights, col_weights)

    def _way_back(self, *key):
        """As ``_compute_way``, which the windows of a row or column share."""
        if key not in self._ways:
            self._ways[key] = self._compute_way(*key)
        return self._ways[key]

    def _compute_way(self, source, window, axis):
        """What a window's logits add to the original's, along one side: ``[target, source]``.

        A pixel's logits are the mean over the windows that see it, of which there are as many as
        there are for its row times those for its column.
        """
        windows = (self.rows, self.columns)[axis]
        times_seen = np.zeros([windows[-1][1], 1])
        for start, end in windows:
            times_seen[start:end] += 1
        way = np.zeros([len(times_seen), source])
        way[slice(*window)] = linear_weights(source, window[1] - window[0], self.align_corners)
        way /= times_seen
        if axis + 2 in self.view.flip:
            way = way[::-1]
        for kind, size in reversed(self.view.trans_info):
            # What is not a resize is padding, at the right and the bottom.
            way = resize_rows(way, size[axis]) if kind == "resize" else way[: size[axis]]
        return way


def _windows(length, size, stride):
    """Start and end of each window along one side; the last is pushed back into the image."""
    starts = range(0, max(length - size, 0) + stride, stride)
    ends = [min(start + size, length) for start in starts]
    return [(max(end - size, 0), end) for end in ends]
