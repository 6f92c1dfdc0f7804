"""Reading images of any kind as training reads them."""

from io import BytesIO

import cv2
import numpy as np
from PIL import Image, ImageOps

from ..errors import InputError


def read_image(path):
    """Read an image file: grey, with alpha, 16-bit, CMYK, rotated by EXIF, or animated.

    OpenCV reads what it can, as in training; the first picture of what it cannot, Pillow.

    Returns:
        uint8 array ``[H, W, 3]``, BGR as OpenCV has it.

    Raises:
        InputError: It is missing or no image.
    """
    return _or_by_pillow(_by_opencv(cv2.imread, str(path)), path, path)


def decode_image(data, name="image"):
    """Read an image as ``read_image`` does, from the bytes of its file.

    Args:
        data: The bytes; at least one.
        name: What an error calls it.

    Returns:
        uint8 array ``[H, W, 3]``, BGR.

    Raises:
        InputError: It is no image.
    """
    image = _by_opencv(cv2.imdecode, np.frombuffer(data, dtype="uint8"))
    return _or_by_pillow(image, BytesIO(data), name)


def _by_opencv(read, source):
    """What OpenCV makes of an image, or None; it raises where one claims to be too large."""
    try:
        return read(source, cv2.IMREAD_COLOR)
    except cv2.error:
        return None


def _or_by_pillow(image, file, name):
    """What OpenCV made of a file, or Pillow makes of it where that is None."""
    if image is not None:
        return image
    try:
        with Image.open(file) as picture:
            return from_pillow(picture)
    except Exception as error:  # of damaged files Pillow raises many kinds
        raise InputError(f"{name}: cannot be read as an image ({error}).") from error


def from_pillow(picture):
    """A Pillow image as ``read_image`` would read its file: turned by EXIF, 16 bits scaled to 8.

    Returns:
        uint8 array ``[H, W, 3]``, BGR.

    Raises:
        ValueError: Its values are floats, or integers of 32 bits.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("F", "I"):
        raise ValueError("it has no 8 or 16-bit values")
    if picture.mode.startswith("I;16"):
        grey = (np.asarray(picture).astype("uint16") >> 8).astype("uint8")
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    return np.asarray(picture.convert("RGB"))[:, :, ::-1].copy()
