"""Image files and label files to arrays.

In memory, all images are on the 8-bit scale: uint8, or float32 from files of other types, of which
the range of the type is 0 to 255; see ``to_8bit_scale``. Color images are RGB.
"""

import os
import threading
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..log import logger
from .raster_io import is_deep_png, open_image, read_bands
from .size_limit import BMP_SIGNATURE, JPEG_SIGNATURE, PNG_SIGNATURE, check_header

# What OpenCV reads: JPEG, PNG and BMP, as PaddleSeg's data sets do. Other formats are Pillow's,
# because the OpenCV that PaddleSeg requires decodes them with libraries of 2022.
OPENCV_SIGNATURES = (JPEG_SIGNATURE, PNG_SIGNATURE, BMP_SIGNATURE)
# What the 255 of the 8-bit scale stands for; in all other types it stands for 1.
RANGES = {"uint8": 255, "uint16": 65535, "int16": 32767}
TYPE_NAMES = {"uint8": "8-bit", "uint16": "16-bit", "int16": "signed 16-bit"}


class ColorMaskError(InputError):
    """A label file has several channels."""


class TypeCheck:
    """Warns once of an image whose values are on another scale than those of the training images.

    Args:
        types: Types of the values in the files of the training images, such as ``"uint16"``; none
            if they are unknown, and then there is no warning.
    """

    def __init__(self, types=()):
        self._types, self._once = list(types), threading.Lock()

    def __call__(self, name, dtype):
        """Check an image, with the type of the values in its file."""
        expected = [RANGES.get(x, 1) for x in self._types]
        actual = RANGES.get(dtype, 1)
        if not expected or actual in expected or not self._once.acquire(blocking=False):
            return
        names = " and ".join(TYPE_NAMES.get(x, x) for x in self._types)
        logger.warning(
            f"{name}: has {TYPE_NAMES.get(dtype, dtype)} values, but the training images have "
            f"{names} values; its {actual} is read like their {expected[0]}: unless these mean the "
            "same, convert such images to the type and scale of the training images"
        )


ANY_TYPE = TypeCheck()


def read_image(path, channels=3, check_type=ANY_TYPE):
    """Read an image file of any type: gray, with alpha, CMYK, 16-bit, float, multi-band, animated.

    OpenCV reads JPEG, PNG and BMP files. Pillow reads other formats, of an animation the first
    frame, and JPEG, PNG and BMP files that OpenCV cannot read; rasterio reads TIFF files that
    Pillow cannot, and NumPy ``.npy`` files.

    Args:
        path: The file.
        channels: Number of bands that is wanted; see ``fit_channels``.
        check_type: Function that gets the file's name and the type of its values.

    Returns:
        Array ``[H, W, channels]``, or ``[H, W]`` for one channel: uint8, or float32 on the 8-bit
        scale; see ``to_8bit_scale``.

    Raises:
        InputError: The file is missing, not an image, truncated, too large (see
            ``size_limit.check_size``), has NaN or infinite values, or another number of bands.
    """
    path = Path(path)
    try:
        if not path.is_file():  # reading a pipe would wait for a writer
            raise InputError(f"{path}: cannot be read as an image (not a file).")
        return decode_image(path.read_bytes(), path, channels, check_type)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an image ({error.strerror}).") from error


def decode_image(data, name="image", channels=3, check_type=ANY_TYPE):
    """Decode the bytes of an image file as ``read_image`` does; errors call the image ``name``."""
    if not data:
        raise InputError(f"{name}: cannot be read as an image (it is empty).")
    if is_cut_off(data):
        raise InputError(f"{name}: cannot be read as an image (the file is truncated).")
    return _decode(data, name, channels, check_type)


def _decode(data, name, channels, check_type=ANY_TYPE):
    try:
        if channels in (1, 3) and data.startswith(OPENCV_SIGNATURES) and not is_deep_png(data):
            check_header(data)
            with suppress(cv2.error):  # above 2**30 pixels; Pillow's error says more
                mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
                image = cv2.imdecode(np.frombuffer(data, "uint8"), mode)
                if image is not None:
                    check_type(name, "uint8")
                    return image if channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        values, has_alpha, _ = read_bands(data)
    except Exception as error:  # decoders raise many types on damaged files
        reason = str(error).partition(" <_io")[0] or type(error).__name__
        raise InputError(f"{name}: cannot be read as an image ({reason}).") from error
    check_type(name, type_name(values.dtype))
    return fit_channels(to_8bit_scale(values, name), channels, name, has_alpha)


def type_name(dtype):
    """The name of a NumPy type, without its byte order."""
    return np.dtype(dtype).newbyteorder("=").name


def to_8bit_scale(values, name="image"):
    """Convert the values of an image file to those of the pipeline, which are on the 8-bit scale.

    uint8 is returned as it is, everything else as float32, ``value / range * 255``, where the range
    is 65535 for uint16, 32767 for int16, and 1 for all other types. So ``Normalize``'s mean and
    standard deviation are fractions of the type's range, or, for floats and large integers, in the
    file's own units.

    Args:
        values: Array of any numeric type.
        name: What an error calls the image.

    Returns:
        Array of the same shape, uint8 or float32.

    Raises:
        InputError: A value is NaN or infinite, also as float32, or not a number.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "buif":
        raise InputError(f"{name}: has values of type {values.dtype}; convert them to numbers.")
    with np.errstate(over="ignore"):
        scaled = values.astype("float32")
        scaled *= 255  # exact for 16 bits, so that the quotient is the nearest float32
        scaled /= RANGES.get(type_name(values.dtype), 1)
    if not np.isfinite(scaled).all():
        raise InputError(f"{name}: has NaN or infinite values; fill them.")
    return scaled


def fit_channels(image, channels, name="image", has_alpha=False):
    """Give an image, uint8 or float32 ``[H, W]`` or ``[H, W, N]``, a number of channels.

    One band is repeated to three, three are RGB and converted to gray, and alpha is dropped where
    one or three channels are wanted.

    Returns:
        Array ``[H, W, channels]``, or ``[H, W]`` for one channel.

    Raises:
        InputError: The image has another number of bands.
    """
    bands = image.shape[2] if image.ndim == 3 else 1
    if has_alpha and channels in (1, 3):
        bands -= 1
        image = image[:, :, 0] if bands == 1 else np.ascontiguousarray(image[:, :, :bands])
    if bands == 1 and channels == 3:
        return np.repeat(image[:, :, np.newaxis], 3, axis=2)
    if bands == 3 and channels == 1:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if bands != channels:
        count = f"{bands} band{'s' * (bands > 1)}"
        raise InputError(
            f"{name}: has {count} ({image.shape[1]}x{image.shape[0]} pixels), but img_channels is "
            f"{channels}; set img_channels: {bands} in train_dataset and val_dataset to train a "
            "model for such images, or convert the image."
        )
    return image


def is_cut_off(data):
    """Whether the bytes are a truncated JPEG, the rest of which OpenCV would fill with gray.

    An end-of-image marker must follow the last start-of-scan marker; an earlier one may belong to
    an embedded thumbnail.
    """
    return data.startswith(JPEG_SIGNATURE) and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def read_pair(image_path, label_path, channels=3):
    """Read an image and its ground truth, whose path may be None.

    Returns:
        The image as ``read_image`` returns it, except that a truncated JPEG is accepted; and the
        label map, uint8 ``[H, W]`` (the indices of a palette image), or None.

    Raises:
        InputError: As of ``read_image``; or the label map is missing or unreadable, has several
            channels or values outside 0 to 255, or another size than the image.
    """
    image = _decode(_read(image_path, lambda: Path(image_path).read_bytes()), image_path, channels)
    if label_path is None:
        return image, None
    label = read_label(label_path)
    if label.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (label, image)]
        raise InputError(f"{label_path}: is {sizes[0]}, but its image {image_path} is {sizes[1]}.")
    return image, label


def read_label(path):
    """Read a label map.

    Returns:
        uint8 array ``[H, W]``: the values in the file, or the indices of a palette image.

    Raises:
        ColorMaskError: The file has several channels.
        InputError: It is missing or unreadable, or has values outside 0 to 255.
    """
    label = _read(path, lambda: np.asarray(open_image(Path(path).read_bytes(), bands=1)))
    if label.ndim != 2:
        raise ColorMaskError(
            f"{path}: must be a single-channel 8-bit image; convert color masks with "
            "segformer masks_from_colors."
        )
    if label.dtype.kind in "biu" and label.min() >= 0 and label.max() <= 255:
        label = label.astype("uint8", copy=False)  # from 1 or 16 bits
    if label.dtype != np.uint8:
        raise InputError(
            f"{path}: must be a single-channel 8-bit image, but has {label.dtype} values from "
            f"{label.min()} to {label.max()}; write class indices from 0 to 255."
        )
    return label


def _read(path, reader):
    if not os.path.isfile(path):  # reading a pipe would wait for a writer
        raise InputError(f"{path}: does not exist, or is not a file.")
    try:
        return reader()
    except Exception as error:  # Pillow raises many types on damaged files
        raise InputError(f"{path}: cannot be read as an image ({error}).") from error
