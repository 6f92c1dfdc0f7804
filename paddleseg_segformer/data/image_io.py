"""Image files and label files to arrays.

Color images are returned as uint8 RGB.
"""

import contextlib
import os
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import InputError

# What OpenCV reads: JPEG, PNG and BMP, as PaddleSeg's data sets do. Other formats are Pillow's,
# because the OpenCV that PaddleSeg requires decodes them with libraries of 2022.
OPENCV_SIGNATURES = (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"BM")

# Pillow warns above MAX_IMAGE_PIXELS, 89 million, and fails above twice as many; satellite images
# have more. OpenCV reads up to 2**30.
if Image.MAX_IMAGE_PIXELS:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, 1 << 28)


def read_image(path):
    """Read an image file: gray, with alpha, 16-bit, CMYK, rotated by EXIF, or animated.

    OpenCV reads JPEG, PNG and BMP files. Pillow reads other formats, of an animation the first
    frame, and JPEG, PNG and BMP files that OpenCV cannot read.

    Returns:
        uint8 array ``[H, W, 3]``, RGB.

    Raises:
        InputError: The file is missing, not an image, or truncated.
    """
    path = Path(path)
    if not path.is_file():  # reading a pipe would wait for a writer
        raise InputError(f"{path}: cannot be read as an image (not a file).")
    try:
        return decode_image(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read as an image ({error.strerror}).") from error


def decode_image(data, name="image"):
    """Decode the bytes of an image file as ``read_image`` does; errors call the image ``name``."""
    if not data:
        raise InputError(f"{name}: cannot be read as an image (it is empty).")
    if is_cut_off(data):
        raise InputError(f"{name}: cannot be read as an image (the file is truncated).")
    if data.startswith(OPENCV_SIGNATURES):
        # OpenCV raises on oversized images; Pillow's error says so more clearly.
        with contextlib.suppress(cv2.error):
            image = cv2.imdecode(np.frombuffer(data, dtype="uint8"), cv2.IMREAD_COLOR)
            if image is not None:
                return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    try:
        with Image.open(BytesIO(data)) as image:
            return from_pillow(image)
    except Exception as error:  # Pillow raises many types on damaged files
        reason = str(error).partition(" <_io")[0]
        raise InputError(f"{name}: cannot be read as an image ({reason}).") from error


def is_cut_off(data):
    """Whether the bytes are a truncated JPEG, the rest of which OpenCV would fill with gray.

    An end-of-image marker must follow the last start-of-scan marker; an earlier one may belong to
    an embedded thumbnail.
    """
    return data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < data.rfind(b"\xff\xda")


def from_pillow(image):
    """Convert a Pillow image as ``read_image`` reads its file.

    The EXIF orientation is applied, except of WebP; 16 bits are scaled to 8.

    Returns:
        uint8 array ``[H, W, 3]``, RGB.

    Raises:
        ValueError: The values are floats or 32-bit integers.
    """
    if image.format != "WEBP":  # in WebP, OpenCV and browsers ignore it
        image = ImageOps.exif_transpose(image)
    if image.mode in ("F", "I"):
        raise ValueError("not an image of 8 or 16-bit values")
    if image.mode.startswith("I;16"):
        gray = (np.asarray(image).astype("uint16") >> 8).astype("uint8")
        return np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    return np.array(image.convert("RGB"))


def read_pair(image_path, label_path, channels=3):
    """Read an image and its ground truth, whose path may be None.

    Returns:
        The image, uint8 ``[H, W, 3]``, RGB, or grayscale ``[H, W]`` if ``channels`` is 1; and the
        label map, uint8 ``[H, W]`` (the indices of a palette image), or None.

    Raises:
        InputError: A file is missing or unreadable, the label map has several channels or values
            outside 0 to 255, or the sizes differ.
    """
    image = _read(image_path, lambda: _read_color_or_gray(image_path, channels))
    if label_path is None:
        return image, None
    label = _read(label_path, lambda: np.asarray(Image.open(label_path)))
    if label.dtype.kind in "biu" and label.min() >= 0 and label.max() <= 255:
        label = label.astype("uint8", copy=False)  # from 1 or 16 bits
    if label.ndim != 2 or label.dtype != np.uint8:
        hint = "convert color masks with tools/masks_from_colors.py"
        raise InputError(f"{label_path}: must be a single-channel 8-bit image; {hint}.")
    if label.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (label, image)]
        raise InputError(f"{label_path}: is {sizes[0]}, but its image {image_path} is {sizes[1]}.")
    return image, label


def _read_color_or_gray(path, channels):
    """The image as ``read_pair`` returns it, or None if it is of no known format or truncated."""
    with open(path, "rb") as file:
        start = file.read(8)
    if start.startswith(OPENCV_SIGNATURES):
        image = cv2.imread(path, cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR)
        return image if image is None or channels == 1 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    with contextlib.suppress(UnidentifiedImageError), Image.open(path) as picture:
        image = from_pillow(picture)
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if channels == 1 else image
    return None


def _read(path, reader):
    if not os.path.isfile(path):  # reading a pipe would wait for a writer
        raise InputError(f"{path}: does not exist, or is not a file.")
    try:
        array = reader()
    except Exception as error:  # Pillow and OpenCV raise many types on damaged files
        raise InputError(f"{path}: cannot be read as an image ({error}).") from error
    if array is None:
        raise InputError(f"{path}: cannot be read as an image; repair or remove it.")
    return array
