"""The paper's transforms that PaddleSeg lacks, with PaddleSeg's interface, and ``Compose``.

A transform takes and returns a sample, a dictionary whose ``img`` is ``[H, W, 3]``, RGB,
``[H, W, N]`` of other bands, or ``[H, W]`` of one. Its values are on the 8-bit scale; see
``image_io.to_8bit_scale``. ``is_8bit`` says whether the image was uint8; without it, it was. Of
other images, ``range`` has the minimum and maximum of each band before the first transform.
``Compose`` says which transforms get such an image as uint8 and which as float32. All random
numbers come from NumPy's global generator, which ``engine.dataloader`` seeds for each sample.
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
from .band_transforms import is_8bit

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
        if is_8bit(sample):
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

    Contrast is changed before or after saturation and hue, with equal probability. Saturation and
    hue are those of 8-bit RGB images; brightness and contrast can be changed of all images.

    An image of more than 8 bits need not fill the range of its type, so each band is changed
    relative to its own minimum and maximum in the image, without padding: 255 of ``brightness`` is
    their difference, and contrast is a factor of the difference to the minimum. The result is not
    clipped.

    Args:
        brightness: Maximum absolute value of the number added to all values.
        contrast: ``[low, high]`` of the factor of all values.
        saturation: ``[low, high]`` of the factor of the saturation; None for no change.
        hue: Maximum shift of the hue in either direction, 180 is the full circle; None for no
            change.

    Raises:
        InputError: Saturation or hue is to be changed, and the image is not an 8-bit RGB image.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: Sequence[float] = (0.5, 1.5),
        saturation: Sequence[float] | None = (0.5, 1.5),
        hue: int | None = 18,
    ) -> None:
        self.brightness, self.hue = brightness, hue
        factors = (lambda x: is_number(x) and x >= 0, "two numbers of at least 0")
        self.contrast = _pair("contrast", contrast, *factors)
        self.saturation = None if saturation is None else _pair("saturation", saturation, *factors)

    def __call__(self, sample):
        changes_color = self.saturation is not None or self.hue is not None
        if changes_color and not (is_8bit(sample) and sample["img"].shape[2:] == (3,)):
            raise InputError(
                "PhotometricDistortion changes saturation and hue of 8-bit RGB images only; set "
                "saturation: null and hue: null for others."
            )
        shift = np.random.uniform(-self.brightness, self.brightness) if _coin() else None
        contrast = np.random.uniform(*self.contrast) if _coin() else None
        contrast_first = _coin()
        if not is_8bit(sample):
            lowest, highest = sample.get("range") or _band_range(sample["img"])
            sample["img"] = _distort_floats(sample["img"], shift, contrast, lowest, highest)
            return sample
        image = np.ascontiguousarray(_to_uint8(self, sample["img"]))
        if shift is not None:
            image = cv2.LUT(image, _table(1, shift))
        if contrast is not None and contrast_first:
            image = cv2.LUT(image, _table(contrast, 0))
        if changes_color:
            image = self._distort_colors(image)
        if contrast is not None and not contrast_first:
            image = cv2.LUT(image, _table(contrast, 0))
        sample["img"] = image
        return sample

    def _distort_colors(self, image):
        # Lookup tables of hue, saturation and value.
        tables = [np.arange(256, dtype="uint8") for _ in range(3)]
        if change_saturation := self.saturation is not None and _coin():
            tables[1] = _table(np.random.uniform(*self.saturation), 0)
        if change_hue := self.hue is not None and _coin():
            shift = np.random.randint(-self.hue, self.hue + 1)
            tables[0] = ((np.arange(256) + shift) % 180).astype("uint8")
        if not (change_saturation or change_hue):
            return image
        hsv = cv2.LUT(cv2.cvtColor(image, cv2.COLOR_RGB2HSV), np.stack(tables, axis=-1)[None])
        return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def _band_range(image):
    return image.min(axis=(0, 1)), image.max(axis=(0, 1))


def _distort_floats(image, shift, contrast, lowest, highest):
    """Change brightness and contrast relative to the minimum and maximum of each band."""
    if shift is not None:
        shift = np.float32(shift / 255) * (highest - lowest)
        image, lowest = image + shift, lowest + shift
    if contrast is not None:
        image = (image - lowest) * np.float32(contrast) + lowest
    return image


class Normalize(ps_transforms.Normalize):
    """PaddleSeg's ``Normalize``, ``(img / 255 - mean) / std``, by a lookup table on 8-bit images.

    Both ways give the same float32 values to the last bit.

    Args:
        mean: One number, or one per band: a fraction of the range of the image's type, which is
            255 for 8 bits and 65535 for 16 bits; for floats, in the file's own units.
        std: Likewise.

    Attributes:
        table: The result by 8-bit value: float32 ``[1, 256, bands]``, or ``[1, 256, 1]`` for all.

    Raises:
        InputError: The image has another number of bands, or 8 bits and a mean above 1.
    """

    def __init__(self, mean: Sequence[float] = (0.5,), std: Sequence[float] = (0.5,)) -> None:
        for name, value in (("mean", mean), ("std", std)):
            if np.asarray(value).dtype.kind not in "iuf" or np.ndim(value) > 1:
                raise ValueError(f"{name} must be a number or one per band, not {value!r}")
        if not np.all(std):
            raise ValueError(f"std must not be 0, but is {std!r}")
        lengths = {np.size(mean), np.size(std)} - {1}
        if len(lengths) > 1:
            counts = f"{np.size(mean)} and {np.size(std)}"
            raise ValueError(f"mean and std must have one number or one per band, not {counts}")
        super().__init__(np.atleast_1d(mean).tolist(), np.atleast_1d(std).tolist())
        self._channels = max(lengths, default=1)
        values = np.tile(np.arange(256)[np.newaxis, :, np.newaxis], [1, 1, self._channels])
        self.table = super().__call__({"img": values})["img"]

    def __call__(self, sample):
        image = sample["img"]
        bands = image.shape[2] if image.ndim == 3 else 1
        if self._channels not in (1, bands):
            raise InputError(
                f"Normalize: mean and std are for {self._channels} bands, but the images have "
                f"{bands}; give one number, or one per band."
            )
        # Of other images only the statistics before training tell: floats may have any unit, and
        # all of a crop of them, or a window, may be between 0 and 1.
        if self.mean.max() > 1 and sample.get("is_8bit", image.dtype == np.uint8):
            raise InputError(
                f"Normalize: mean {self.mean.tolist()} is above 1, but of 8-bit images it is a "
                "fraction of 255; divide mean and std by 255."
            )
        if image.dtype != np.uint8:
            return super().__call__(sample)
        sample["img"] = cv2.LUT(image, self.table)
        return sample


def normalization(transforms, bands):
    """Mean and standard deviation of ``Normalize``: array ``[2, bands]``; 0 and 1 without it.

    ``transforms`` is a list of transforms, or a ``Compose``.
    """
    for transform in getattr(transforms, "transforms", transforms):
        if isinstance(transform, ps_transforms.Normalize):
            pair = transform.mean, transform.std
            return np.stack([np.broadcast_to(np.ravel(x), [bands]) for x in pair])
    return np.repeat([[0.0], [1.0]], bands, axis=1)


# Transforms with the same result on an 8-bit image whether uint8 or float32 holds it. Subclasses
# are not included: they may do anything.
_KEEP_8BIT = (ResizeToFit, Rescale, RandomCategoryCrop, PhotometricDistortion, Normalize)
_KEEP_8BIT += (ps_transforms.RandomHorizontalFlip, ps_transforms.RandomVerticalFlip)
_KEEP_8BIT += (ps_transforms.RandomCenterCrop,)


class Compose:
    """Apply transforms in turn: PaddleSeg's ``Compose`` for an image that has been read already.

    An 8-bit image stays uint8 up to the first transform that may give another result on float32,
    such as an interpolation or padding by 127.5. That one, and each such one after it, gets
    float32, as all do from PaddleSeg's ``Compose``; so the results are PaddleSeg's.
    """

    def __init__(self, transforms):
        self.transforms = list(transforms)

    def __call__(self, sample):
        """Transform a sample, whose ``img`` is uint8 or float32 ``[H, W, N]`` or ``[H, W]``.

        Returns:
            The sample with ``img`` as ``[C, h, w]``, uint8 or float32; ``trans_info``, a list of
            ``("resize" or "padding", (H, W) before it)``; and ``is_8bit``, whether ``img`` was
            uint8.
        """
        sample.setdefault("trans_info", [])
        sample["is_8bit"] = sample["img"].dtype == np.uint8
        if not sample["is_8bit"]:
            sample["range"] = _band_range(sample["img"])
        for transform in self.transforms:
            if type(transform) not in _KEEP_8BIT:
                sample["img"] = sample["img"].astype("float32", copy=False)
            sample = transform(sample)
        sample.pop("range", None)
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
    if is_8bit(sample):
        sample["img"] = sample["img"].astype("uint8", copy=False)
    sample["img"] = cv2.resize(sample["img"], tuple(size))
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
