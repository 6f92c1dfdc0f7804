"""Reading images of any kind as training reads them."""

import contextlib
from io import BytesIO
from pathlib import Path

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
        InputError: It is missing, no image, or not a whole one.
    """
    path = Path(path)
    if not path.is_file():  # reading a pipe would wait for a writer
        raise InputError(f"{path}: cannot be read as an image (it is no file).")
    try:
        return decode_image(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an image ({error.strerror}).") from error


def decode_image(data, name="image"):
    """Read an image as ``read_image`` does, from the bytes of its file.

    Args:
        data: The bytes.
        name: What an error calls it.

    Returns:
        uint8 array ``[H, W, 3]``, BGR.

    Raises:
        InputError: It is no image, or not a whole one.
    """
    if not data:
        raise InputError(f"{name}: cannot be read as an image (it is empty).")
    if is_cut_off(data):
        raise InputError(f"{name}: cannot be read as an image (its end is missing).")
    with contextlib.suppress(cv2.error):  # raised of sizes beyond reason, which Pillow tells
        image = cv2.imdecode(np.frombuffer(data, dtype="uint8"), cv2.IMREAD_COLOR)
        if image is not None:
            return image
    try:
        with Image.open(BytesIO(data)) as picture:
            return from_pillow(picture)
    except Exception as error:  # of damaged files Pillow raises many kinds
        reason = str(error).partition(" <_io")[0]
        raise InputError(f"{name}: cannot be read as an image ({reason}).") from error


def is_cut_off(data):
    """Whether the bytes are a JPEG's that has no end, whose rest OpenCV would fill with grey.

    After the last start of a scan comes the end of the image; what looks like it before may be
    that of a thumbnail.
    """
    return data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


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
