"""Types and statistics of images, and whether transforms leave them in a range for training."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import InputError
from ..log import logger
from .image_io import OPENCV_SIGNATURES, RANGES, TYPE_NAMES, read_pair, type_name
from .raster_io import is_alpha_png, is_deep_png, read_bands

# What a network can be trained on. Normalized photos have a mean near 0 and a standard deviation
# near 1; 12-bit values in 16 bits, with ImageNet's mean and deviation, one of 0.07 or less.
MIN_STD, MAX_STD, MAX_MEAN = 0.1, 10, 10
HEADER_BYTES = 26


def has_plain_type(path):
    """Whether the first bytes of a file show that it has 8 bits and no alpha channel."""
    try:
        with open(path, "rb") as file:
            start = file.read(HEADER_BYTES)
    except OSError:
        return False
    return start.startswith(OPENCV_SIGNATURES) and not (is_deep_png(start) or is_alpha_png(start))


def examine(path, image, channels):
    """What ``ImageSummary.add`` takes of an image file.

    Args:
        path: The file.
        image: What ``read_pair`` returns for it.
        channels: Number of bands that is wanted.

    Returns:
        The type of the values; whether alpha is not read; the nodata value, or None if no pixel has
        it or it is 0; and ``Statistics``.
    """
    statistics = Statistics.of(cv2.split(image))
    if has_plain_type(path):
        return "uint8", False, None, statistics
    values, has_alpha, nodata = read_bands(Path(path).read_bytes())
    if not nodata or not (values == nodata).any():
        nodata = None
    return type_name(values.dtype), has_alpha and channels in (1, 3), nodata, statistics


def summarize(dataset, indices):
    """The ``ImageSummary`` of some images of a ``Dataset``, without the unreadable ones."""
    summary = ImageSummary()
    for index in indices:
        path = str(dataset.file_list[index][0])
        with suppress(InputError):  # reading the sample reports it
            image, _ = read_pair(path, None, dataset.img_channels)
            summary.add(path, *examine(path, image, dataset.img_channels))
    return summary


class Statistics(NamedTuple):
    """Statistics of the values of each band, float64 ``[bands]``."""

    pixels: int
    minimum: np.ndarray
    maximum: np.ndarray
    mean: np.ndarray
    squares: np.ndarray  # sum of the squared differences from the mean

    @property
    def std(self):
        """The standard deviation."""
        return np.sqrt(self.squares / self.pixels)

    @classmethod
    def of(cls, bands, mask=None):
        """Statistics of bands, a list of arrays ``[H, W]``, uint8 or float32.

        ``mask``, uint8 ``[H, W]``, is not 0 for the pixels that count, of which there are some.
        """
        pixels = bands[0].size if mask is None else np.count_nonzero(mask)
        minimum, maximum = np.array([cv2.minMaxLoc(band, mask)[:2] for band in bands]).T
        moments = [cv2.meanStdDev(band, mask=mask) for band in bands]
        mean, std = np.reshape(moments, [-1, 2]).T
        return cls(pixels, minimum, maximum, mean, std**2 * pixels)

    def merge(self, other):
        """Statistics of the pixels of both."""
        pixels, shift = self.pixels + other.pixels, other.mean - self.mean
        return Statistics(
            pixels,
            np.minimum(self.minimum, other.minimum),
            np.maximum(self.maximum, other.maximum),
            self.mean + shift * (other.pixels / pixels),
            self.squares + other.squares + shift**2 * (self.pixels * other.pixels / pixels),
        )


def find_spoiled_bands(dataset, samples):
    """Look for bands of transformed images that a model cannot be trained on.

    Ignored pixels do not count, because padding is ignored and has a value of its own.

    Args:
        dataset: A ``Dataset``.
        samples: Training samples of it. Those with ignored pixels only are left out.

    Returns:
        ``Statistics`` or None, and a bool array ``[bands]``, without such samples ``[0]``.
    """
    parts = []
    for sample in samples:
        mask = (sample["label"] != dataset.ignore_index).astype("uint8")
        if mask.any():
            parts.append(Statistics.of([*sample["img"]], mask))
    if not parts:
        return None, np.zeros(0, bool)
    after = reduce(Statistics.merge, parts)
    return after, (after.std < MIN_STD) | (after.std > MAX_STD) | (np.abs(after.mean) > MAX_MEAN)


class ImageSummary:
    """Types and statistics of images.

    Attributes:
        types: Number of images by type of the values in their files, such as ``"uint16"``.
        statistics: ``Statistics`` of the images on the 8-bit scale, or None without an image.
        with_alpha: Path of an image whose alpha channel is not read, or None.
        with_nodata: Path of an image that has pixels without data, and their value; or None.
    """

    def __init__(self):
        self.types, self.statistics = Counter(), None
        self.with_alpha = self.with_nodata = None

    def add(self, path, dtype, drops_alpha, nodata, statistics):
        """Add the results of ``examine``."""
        self.types[dtype] += 1
        self.statistics = self.statistics.merge(statistics) if self.statistics else statistics
        if drops_alpha:
            self.with_alpha = self.with_alpha or path
        if nodata is not None:
            self.with_nodata = self.with_nodata or (path, nodata)

    def is_8bit(self):
        """Whether all files have 8 bits."""
        return set(self.types) == {"uint8"}

    def describe(self):
        """The type, maximum and number of bands, in words."""
        bands = len(self.statistics.mean)
        maximum = (self.statistics.maximum.max() * self._unit()).item()
        return f"{self._type_names()}, maximum {maximum:.6g}, {bands} band{'s' * (bands > 1)}"

    def _type_names(self):
        return " and ".join(TYPE_NAMES.get(dtype, dtype) for dtype, _ in self.types.most_common())

    def table(self):
        """The statistics of each band in the unit of the files, in lines of text."""
        rows = [["band", "minimum", "maximum", "mean", "std"]]
        for band, row in enumerate(np.transpose([*self.statistics[1:4], self.statistics.std]), 1):
            rows.append([str(band), *(f"{value * self._unit():.6g}" for value in row)])
        return "\n".join("".join(f"{text:>11}" for text in row)[7:] for row in rows)

    def normalize(self):
        """The ``Normalize`` of the images, as in a config; a constant band is only shifted."""
        mean, std = self.statistics.mean / 255, self.statistics.std / 255
        std = np.where(self.is_constant(), 1, std)
        mean = yaml_list(mean, resolution=std / 1000)
        return f"{{type: Normalize, mean: {mean}, std: {yaml_list(std)}}}"

    def warnings(self, section):
        """Sentences on what is not read or has no content, and on several scales."""
        if len({RANGES.get(dtype, 1) for dtype in self.types}) > 1:
            yield (
                f"{section}: has images with values of several types ({self._type_names()}), each "
                "read as fractions of its own range; unless these mean the same, convert the "
                "images to one type and scale"
            )
        if self.with_alpha:
            yield (
                f"{section}: the alpha channel of images such as {self.with_alpha} is not used; if "
                "it is a fourth band, set img_channels: 4"
            )
        if self.with_nodata:
            path, nodata = self.with_nodata
            yield (
                f"{section}: images such as {path} have pixels without data, whose value "
                f"{nodata:g} is read like any other; write 0 there, as predict reads them, and "
                "ignore them in the labels"
            )
        if self.statistics and self.is_constant().any():
            bands = ", ".join(str(band + 1) for band in np.flatnonzero(self.is_constant()))
            yield f"{section}: all images have the same value everywhere in band {bands}"

    def is_constant(self):
        """Whether each band has one value, bool ``[bands]``."""
        return self.statistics.minimum == self.statistics.maximum

    def _unit(self):
        """The unit of the files on the 8-bit scale; with several types, the fraction of a range."""
        return (self._range() if len(self.types) == 1 else 1) / 255

    def _range(self):
        (dtype,) = self.types
        return RANGES.get(dtype, 1)

    def _unit_name(self):
        if len(self.types) > 1:
            return "as fractions of the types' ranges"
        return f"as fractions of {self._range()}" if self._range() > 1 else "in the files' unit"

    def check_transformed(self, section, after, spoiled):
        """Refuse transforms that spoil the images; of 8-bit images, only warn.

        Also of a band with one value after the transforms only: crops may miss the others.

        Args:
            section: The data set's key in the config.
            after, spoiled: Result of ``find_spoiled_bands``.

        Raises:
            InputError: A band with more than one value, also after the transforms, is spoiled.
        """
        if len(spoiled) != len(self.statistics.mean):  # custom transforms change the bands
            return
        spoiled = spoiled & ~self.is_constant()
        constant = spoiled & (after.minimum == after.maximum)
        if constant.any():
            bands = ", ".join(str(band + 1) for band in np.flatnonzero(constant))
            logger.warning(
                f"{section}.transforms: leave the same value everywhere in band {bands} of the "
                "sampled images, whose files have several; check the transforms, unless others "
                "are rare"
            )
        bands = np.flatnonzero(spoiled & ~constant)
        if not bands.size:
            return
        band, mean, std = bands[0], self.statistics.mean / 255, self.statistics.std / 255
        text = (
            f"{section}.transforms: leave values that a model cannot be trained on: band {band + 1}"
            f" of the images ({self.describe()}) has mean {after.mean[band]:.3g} and standard "
            f"deviation {after.std[band]:.3g} instead of about 0 and 1 (before the transforms "
            f"{mean[band]:.4g} and {std[band]:.4g} {self._unit_name()}); use {self.normalize()} in "
            "train_dataset and val_dataset"
        )
        if not self.is_8bit():
            raise InputError(f"{text}.")
        logger.warning(text)


def yaml_list(numbers, resolution=np.inf):
    """Numbers as a list in YAML: with four significant digits, or more if a resolution needs them.

    float32, of which images are, has no more than nine.
    """
    sizes = (np.maximum(np.abs(x), np.finfo("float64").tiny) for x in (numbers, resolution))
    first, last = (np.floor(np.log10(size)) for size in sizes)  # decimal places
    digits = np.clip(first - last + 1, 4, 9)
    return "[" + ", ".join(f"{n:.{d:.0f}g}" for n, d in zip(numbers, digits)) + "]"
