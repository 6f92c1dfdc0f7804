"""The paper's transforms where PaddleSeg has none, in its form: a sample in, the same one out.

Images are ``[H, W, 3]``, RGB, 0 to 255; they are handled as 8-bit, whatever type holds them, so
that what resizes them or changes their colors comes before ``Normalize``. All draws come from
NumPy's global generator, which ``engine.dataloader`` seeds for each sample.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import cv2
import numpy as np
from paddleseg import transforms as paddleseg

from ..config_check import is_number, is_whole
from ..errors import InputError

# PaddleSeg's transforms, and ours, that alone determine the image's size, and the attributes in
# which these and others, which limit or pad, hold sizes in pixels.
_RESIZES = ("Resize", "ResizeByLong", "ResizeByShort", "ResizeToFit")
_SIZES = ("target_size", "long_size", "short_size", "max_size", "max_long", "min_long")
# Normalized images are below it and below 0; 8-bit ones after a cubic resize only if all but black.
_NORMALIZED = 16


class ResizeToFit:
    """Resize, keeping the ratio, to the largest size that fits into a rectangle either way round.

    Args:
        target_size: Two numbers; the larger bounds the longer side, the smaller the shorter side.
        ratio_range: ``[low, high]``: the rectangle is multiplied by a factor drawn uniformly from
            it; None leaves it.
        size_divisor: Each side is then rounded up to a multiple of this; None leaves it.
    """

    def __init__(
        self,
        target_size: Sequence[int],
        ratio_range: Sequence[float] | None = None,
        size_divisor: int | None = None,
    ) -> None:
        self.target_size = _pair("target_size", target_size)
        self.ratio_range = None if ratio_range is None else _pair("ratio_range", ratio_range)
        self.size_divisor = None if size_divisor is None else _whole("size_divisor", size_divisor)

    def __call__(self, sample):
        height, width = sample["img"].shape[:2]
        factor = min(
            max(self.target_size) / max(height, width), min(self.target_size) / min(height, width)
        )
        if self.ratio_range is not None:
            factor *= np.random.uniform(*self.ratio_range)
        size = [max(scaled(side, factor), 1) for side in (width, height)]
        if self.size_divisor is not None:
            size = [math.ceil(side / self.size_divisor) * self.size_divisor for side in size]
        sample["img"] = _bytes(self, sample["img"])
        return _resize(sample, size)


class Rescale:
    """Resize by a factor.

    Args:
        factor: Positive number.
    """

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, sample):
        height, width = sample["img"].shape[:2]
        return _resize(sample, [max(scaled(side, self.factor), 1) for side in (width, height)])


class RandomCategoryCrop:
    """Crop at random, again while one class fills the crop.

    A side that is shorter than the crop stays whole.

    Args:
        crop_size: ``(width, height)``.
        category_max_ratio: Largest share of the crop's valid pixels that a class may have.
        tries: How many crops are drawn at the most; the last is taken as it is.
        ignore_index: Label of the pixels that are not valid.
    """

    def __init__(
        self,
        crop_size: Sequence[int],
        category_max_ratio: float = 0.75,
        tries: int = 10,
        ignore_index: int = 255,
    ) -> None:
        self.crop_size = _pair("crop_size", crop_size, is_whole, "two whole numbers above 0")
        if not (_is_positive(category_max_ratio) and category_max_ratio <= 1):
            raise ValueError(
                f"category_max_ratio must be above 0 and at most 1, not {category_max_ratio!r}"
            )
        self.category_max_ratio = category_max_ratio
        self.tries, self.ignore_index = _whole("tries", tries), ignore_index

    def __call__(self, sample):
        height, width = sample["img"].shape[:2]
        for _ in range(self.tries):
            top = np.random.randint(max(height - self.crop_size[1], 0) + 1)
            left = np.random.randint(max(width - self.crop_size[0], 0) + 1)
            window = np.s_[top : top + self.crop_size[1], left : left + self.crop_size[0]]
            if self._is_mixed(sample["label"][window]):
                break
        for key in ("img", *sample["gt_fields"]):
            sample[key] = sample[key][window]
        return sample

    def _is_mixed(self, label):
        if label.dtype == np.uint8 and 0 <= self.ignore_index < 256:  # several times faster
            counts = cv2.calcHist([label], [0], None, [256], [0, 256])
            counts[self.ignore_index] = 0
        else:
            counts = np.bincount(label[label != self.ignore_index], minlength=1)
        return 0 < counts.max() <= self.category_max_ratio * counts.sum()


class PhotometricDistortion:
    """Change brightness, contrast, saturation and hue, each with probability 0.5.

    Contrast is changed before saturation and hue or after them, with equal probability.

    Args:
        brightness: Largest number that is added to or taken from all values.
        contrast: ``[low, high]`` of the factor of all values.
        saturation: ``[low, high]`` of the factor of the saturation.
        hue: Largest shift, either way, of the hue, of which a circle has 180.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        self.brightness, self.hue = brightness, hue
        factors = (_is_factor, "two numbers of at least 0")
        self.contrast = _pair("contrast", contrast, *factors)
        self.saturation = _pair("saturation", saturation, *factors)

    def __call__(self, sample):
        if sample["img"].shape[2:] != (3,):
            raise InputError(
                "PhotometricDistortion needs images of 3 channels; leave it out of gray."
            )
        image = np.ascontiguousarray(_bytes(self, sample["img"]))
        if _coin():
            shift = np.random.uniform(-self.brightness, self.brightness)
            image = cv2.LUT(image, _table(1, shift))
        contrast = _table(np.random.uniform(*self.contrast), 0) if _coin() else None
        contrast_first = _coin()
        if contrast is not None and contrast_first:
            image = cv2.LUT(image, contrast)
        image = self._distort_colors(image)
        if contrast is not None and not contrast_first:
            image = cv2.LUT(image, contrast)
        sample["img"] = image
        return sample

    def _distort_colors(self, image):
        tables = [np.arange(256, dtype="uint8") for _ in range(3)]  # of hue, saturation, value
        if change_saturation := _coin():
            tables[1] = _table(np.random.uniform(*self.saturation), 0)
        if change_hue := _coin():
            shift = np.random.randint(-self.hue, self.hue + 1)
            tables[0] = ((np.arange(256) + shift) % 180).astype("uint8")
        if not (change_saturation or change_hue):
            return image
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.stack(tables, axis=-1)[None])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


class Normalize(paddleseg.Normalize):
    """PaddleSeg's: divided by 255, less the mean, divided by std; of 8-bit images by a table.

    Args:
        mean: One number, or one a channel, of values from 0 to 1.
        std: Likewise.
    """

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        for name, value in (("mean", mean), ("std", std)):
            if np.asarray(value).dtype.kind not in "iuf":
                raise ValueError(f"{name} must be a number or one a channel, not {value!r}")
            if np.max(value) > 1:
                raise ValueError(f"{name} must be of values from 0 to 1, not to 255, as {value!r}")
        if not np.all(std):
            raise ValueError(f"std must not be 0, as in {std!r}")
        super().__init__(np.atleast_1d(mean).tolist(), np.atleast_1d(std).tolist())
        table = (np.arange(256)[:, np.newaxis] / 255 - self.mean) / self.std
        self._table = table.astype("float32")[np.newaxis]

    def __call__(self, sample):
        if sample["img"].dtype != np.uint8:
            return super().__call__(sample)
        sample["img"] = cv2.LUT(sample["img"], self._table)
        return sample


class Padding(paddleseg.Padding):
    """PaddleSeg's; an image that has the target size is not copied."""

    def __call__(self, sample):
        height, width = sample["img"].shape[:2]
        if tuple(self.target_size) == (width, height):
            sample["trans_info"].append(("padding", (height, width)))
            return sample
        return super().__call__(sample)


class ScalePadding(paddleseg.ScalePadding):
    """PaddleSeg's, which resizes labels as if they were colors: here they stay classes.

    Raises:
        InputError: No label is to be changed as the image is, so that a prediction would not fit.
    """

    def __call__(self, sample):
        fields = sample.get("gt_fields")
        if not fields:
            raise InputError(
                "ScalePadding is for training alone, as it cannot be undone; in val_dataset use "
                "Resize, or ResizeByLong and Padding."
            )
        height, width = sample["img"].shape[:2]
        side = max(height, width)
        inner = np.s_[(side - height) // 2 :, (side - width) // 2 :]
        sample = super().__call__({**sample, "gt_fields": []})
        for key in fields:
            square = np.full([side, side], self.label_padding_value, "uint8")
            square[inner][:height, :width] = sample[key]
            size = tuple(self.target_size)
            sample[key] = cv2.resize(square, size, interpolation=cv2.INTER_NEAREST)
        return {**sample, "gt_fields": fields}


def scaled(side, factor):
    """``side * factor`` in whole pixels, as PaddleSeg and mmsegmentation round it."""
    return int(side * factor + 0.5)


def at_scale(compose, scale):
    """The same transforms for images ``scale`` times as large, made from the original image.

    Their sizes in pixels are multiplied, but for those that are drawn at random, as of
    ``ResizeRangeScaling``; where none resizes, the image itself is rescaled first.
    """
    if scale == 1:
        return compose
    compose = copy.deepcopy(compose)
    for transform in compose.transforms:
        for name in _SIZES:
            size = getattr(transform, name, None)
            if isinstance(transform, ResizeToFit) and size is not None:
                transform.target_size = [side * scale for side in size]
            elif isinstance(size, (list, tuple)):
                setattr(transform, name, [scaled(side, scale) for side in size])
            elif size is not None:
                setattr(transform, name, scaled(size, scale))
    if not any(type(transform).__name__ in _RESIZES for transform in compose.transforms):
        compose.transforms.insert(0, Rescale(scale))
    return compose


def _resize(sample, size):
    sample.setdefault("trans_info", []).append(("resize", sample["img"].shape[:2]))
    sample["img"] = cv2.resize(sample["img"].astype("uint8", copy=False), tuple(size))
    for key in sample.get("gt_fields", []):
        sample[key] = cv2.resize(sample[key], tuple(size), interpolation=cv2.INTER_NEAREST)
    return sample


def _bytes(transform, image):
    """The image as uint8; what a cubic resize puts outside 0 to 255 is cut off.

    Raises:
        InputError: It is normalized.
    """
    if image.dtype == np.uint8:
        return image
    lowest, highest = image.min(), image.max()
    if lowest < 0 and highest < _NORMALIZED:
        raise InputError(f"{type(transform).__name__} must come before Normalize in transforms.")
    if lowest < 0 or highest > 255:
        image = np.clip(image, 0, 255)
    return image.astype("uint8")


def _is_positive(value):
    return is_number(value) and value > 0


def _is_factor(value):
    return is_number(value) and value >= 0


def _whole(name, value):
    if not is_whole(value):
        raise ValueError(f"{name} must be a whole number above 0, not {value!r}")
    return value


def _pair(name, value, fits=_is_positive, wanted="two positive numbers"):
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(fits, value))):
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
    return value


def _coin():
    return np.random.randint(2) == 1


def _table(factor, shift):
    """What each 8-bit value becomes: multiplied, shifted, rounded, kept within 0 to 255."""
    values = np.arange(256) * factor + shift
    return np.clip(values + 0.5, 0, 255).astype("uint8")
