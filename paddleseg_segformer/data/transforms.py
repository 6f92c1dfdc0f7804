"""The paper's transforms that PaddleSeg lacks, with PaddleSeg's interface, and ``Compose``.

A transform takes and returns a sample, a dictionary whose ``img`` is ``[H, W, 3]``, RGB, or
``[H, W]`` if grayscale, with values from 0 to 255. ``Compose`` says which transforms get it as
uint8 and which as float32. All random numbers come from NumPy's global generator, which
``engine.dataloader`` seeds for each sample.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import cv2
import numpy as np
from paddleseg import transforms as ps_transforms

from ..config_check import is_number, is_whole
from ..errors import InputError

# Transforms whose output size does not depend on the input's scale, and the attributes in which
# these and others (limits, padding) hold sizes in pixels.
_RESIZES = ("Resize", "ResizeByLong", "ResizeByShort", "ResizeToFit")
_SIZES = ("target_size", "long_size", "short_size", "max_size", "max_long", "min_long")
# An image with negative values and none as high as this is taken for a normalized one; cubic
# interpolation of an 8-bit image also undershoots 0, but only a nearly black one stays this low.
_MAX_NORMALIZED = 16


class ResizeToFit:
    """Resize to the largest size within bounds for both sides, keeping the aspect ratio.

    Args:
        target_size: Two numbers; the larger bounds the longer side, the smaller the shorter side.
        ratio_range: ``[low, high]`` of a random factor, drawn uniformly, of both bounds; None means
            no random scaling.
        size_divisor: Each side is then rounded up to a multiple of this; None means no rounding.
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
        sample["img"] = _to_uint8(self, sample["img"])
        return _resize(sample, size)


class Rescale:
    """Resize by a positive factor."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, sample):
        height, width = sample["img"].shape[:2]
        return _resize(sample, [max(scaled(side, self.factor), 1) for side in (width, height)])


class RandomCategoryCrop:
    """Random crop, drawn again while one class covers too much of it.

    A side of the image that is shorter than the crop is not cropped.

    Args:
        crop_size: ``(width, height)``.
        category_max_ratio: Maximum share of the crop's valid pixels that one class may cover.
        tries: Maximum number of crops that are drawn; the last one is used in any case.
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
        ratio = self.category_max_ratio = category_max_ratio
        if not (_is_positive(ratio) and ratio <= 1):
            raise ValueError(f"category_max_ratio must be above 0 and at most 1, not {ratio!r}")
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
        if label.dtype == np.uint8 and 0 <= self.ignore_index < 256:
            # Several times faster than bincount.
            counts = cv2.calcHist([label], [0], None, [256], [0, 256])
            counts[self.ignore_index] = 0
        else:
            counts = np.bincount(label[label != self.ignore_index], minlength=1)
        return 0 < counts.max() <= self.category_max_ratio * counts.sum()


class PhotometricDistortion:
    """Change brightness, contrast, saturation and hue at random, each with probability 0.5.

    Contrast is changed before or after saturation and hue, with equal probability.

    Args:
        brightness: Maximum absolute value of the number added to all values.
        contrast: ``[low, high]`` of the factor of all values.
        saturation: ``[low, high]`` of the factor of the saturation.
        hue: Maximum shift of the hue in either direction; 180 is the full circle.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        self.brightness, self.hue = brightness, hue
        factors = (lambda x: is_number(x) and x >= 0, "two numbers of at least 0")
        self.contrast = _pair("contrast", contrast, *factors)
        self.saturation = _pair("saturation", saturation, *factors)

    def __call__(self, sample):
        if sample["img"].shape[2:] != (3,):
            raise InputError(
                "PhotometricDistortion needs images of 3 channels; remove it for grayscale images."
            )
        image = np.ascontiguousarray(_to_uint8(self, sample["img"]))
        if _coin():
            image = cv2.LUT(image, _table(1, np.random.uniform(-self.brightness, self.brightness)))
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
        # Lookup tables of hue, saturation and value.
        tables = [np.arange(256, dtype="uint8") for _ in range(3)]
        if change_saturation := _coin():
            tables[1] = _table(np.random.uniform(*self.saturation), 0)
        if change_hue := _coin():
            shift = np.random.randint(-self.hue, self.hue + 1)
            tables[0] = ((np.arange(256) + shift) % 180).astype("uint8")
        if not (change_saturation or change_hue):
            return image
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.stack(tables, axis=-1)[None])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


class Normalize(ps_transforms.Normalize):
    """PaddleSeg's ``Normalize``, ``(img / 255 - mean) / std``, by a lookup table on 8-bit images.

    Both ways give the same float32 values to the last bit.

    Args:
        mean: One number, or one per channel, of values scaled to 0 to 1.
        std: Likewise.
    """

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        for name, value in (("mean", mean), ("std", std)):
            if np.asarray(value).dtype.kind not in "iuf":
                raise ValueError(f"{name} must be a number or one per channel, not {value!r}")
            if np.max(value) > 1:
                raise ValueError(f"{name} must be for values of 0 to 1, not 0 to 255: {value!r}")
        if not np.all(std):
            raise ValueError(f"std must not be 0, but is {std!r}")
        super().__init__(np.atleast_1d(mean).tolist(), np.atleast_1d(std).tolist())
        channels = max(len(self.mean), len(self.std))
        values = np.tile(np.arange(256)[np.newaxis, :, np.newaxis], [1, 1, channels])
        self._table = super().__call__({"img": values})["img"]

    def __call__(self, sample):
        if sample["img"].dtype != np.uint8:
            return super().__call__(sample)
        sample["img"] = cv2.LUT(sample["img"], self._table)
        return sample


class Padding(ps_transforms.Padding):
    """PaddleSeg's ``Padding``, without copying an image that has the target size already."""

    def __call__(self, sample):
        size = sample["img"].shape[:2]
        if tuple(self.target_size) != size[::-1]:
            return super().__call__(sample)
        sample["trans_info"].append(("padding", size))
        return sample


class ScalePadding(ps_transforms.ScalePadding):
    """PaddleSeg's ``ScalePadding`` with labels resized to the nearest pixel, not interpolated.

    Raises:
        InputError: It is used in validation or prediction, which cannot undo its padding.
    """

    def __call__(self, sample):
        fields = sample.get("gt_fields")
        if not fields:
            raise InputError(
                "ScalePadding is for training only, as predictions cannot undo it; use Resize, or "
                "ResizeByLong and Padding, in val_dataset."
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


# Transforms with the same result on an 8-bit image whether uint8 or float32 holds it. Subclasses
# are not included: they may do anything.
_KEEP_8BIT = (ResizeToFit, Rescale, RandomCategoryCrop, PhotometricDistortion, Normalize)
_KEEP_8BIT += (ps_transforms.RandomHorizontalFlip, ps_transforms.RandomVerticalFlip)
_KEEP_8BIT += (ps_transforms.RandomCenterCrop,)


class Compose:
    """Apply transforms in turn: PaddleSeg's ``Compose`` for an image that has been read as RGB.

    The image stays uint8 up to the first transform that may give another result on float32, such as
    an interpolation or padding by 127.5. That one, and each such one after it, gets float32, as all
    do from PaddleSeg's ``Compose``; so the results are PaddleSeg's.
    """

    def __init__(self, transforms):
        self.transforms = list(transforms)

    def __call__(self, sample):
        """Transform a sample, whose ``img`` is a uint8 array ``[H, W, 3]`` or ``[H, W]``.

        Returns:
            The sample with ``img`` as ``[C, h, w]``, uint8 or float32, and ``trans_info``, a list
            of ``("resize" or "padding", (H, W) before it)``.
        """
        sample.setdefault("trans_info", [])
        for transform in self.transforms:
            if type(transform) not in _KEEP_8BIT:
                sample["img"] = sample["img"].astype("float32", copy=False)
            sample = transform(sample)
        sample["img"] = np.atleast_3d(sample["img"]).transpose(2, 0, 1)
        return sample


def scaled(side, factor):
    """``side * factor`` in whole pixels, rounded as by PaddleSeg and mmsegmentation."""
    return int(side * factor + 0.5)


def at_scale(transforms, scale):
    """Copies of transforms for test-time augmentation at a scale, from the original image.

    All sizes in pixels are multiplied by the scale, except random ones such as those of
    ``ResizeRangeScaling``. Without any transform that resizes, a ``Rescale`` comes first.
    """
    if scale == 1:
        return transforms
    transforms = copy.deepcopy(transforms)
    for transform in transforms:
        for name in _SIZES:
            size = getattr(transform, name, None)
            if isinstance(transform, ResizeToFit) and size is not None:
                transform.target_size = [side * scale for side in size]
            elif isinstance(size, (list, tuple)):
                setattr(transform, name, [scaled(side, scale) for side in size])
            elif size is not None:
                setattr(transform, name, scaled(size, scale))
    if not any(type(transform).__name__ in _RESIZES for transform in transforms):
        transforms.insert(0, Rescale(scale))
    return transforms


def _resize(sample, size):
    sample.setdefault("trans_info", []).append(("resize", sample["img"].shape[:2]))
    sample["img"] = cv2.resize(sample["img"].astype("uint8", copy=False), tuple(size))
    for key in sample.get("gt_fields", []):
        sample[key] = cv2.resize(sample[key], tuple(size), interpolation=cv2.INTER_NEAREST)
    return sample


def _to_uint8(transform, image):
    """Convert to uint8, clipping what cubic interpolation overshoots."""
    if image.dtype == np.uint8:
        return image
    lowest, highest = image.min(), image.max()
    if lowest < 0 and highest < _MAX_NORMALIZED:
        raise InputError(f"{type(transform).__name__} must come before Normalize in transforms.")
    if lowest < 0 or highest > 255:
        image = np.clip(image, 0, 255)
    return image.astype("uint8")


def _is_positive(value):
    return is_number(value) and value > 0


def _whole(name, value):
    if not is_whole(value):
        raise ValueError(f"{name} must be a whole number above 0, not {value!r}")
    return value


def _pair(name, value, is_valid=_is_positive, description="two positive numbers"):
    if not (isinstance(value, (list, tuple)) and len(value) == 2 and all(map(is_valid, value))):
        raise ValueError(f"{name} must be {description}, not {value!r}")
    return value


def _coin():
    return np.random.randint(2) == 1


def _table(factor, shift):
    """Lookup table of ``value * factor + shift``, rounded and clipped to 0 to 255."""
    values = np.arange(256) * factor + shift
    return np.clip(values + 0.5, 0, 255).astype("uint8")
