"""Reading images of any kind as training reads them."""

import contextlib
import os
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import paddleseg.transforms.functional as F
from PIL import Image, ImageOps

from ..errors import InputError


def read_image(path):
    """Read an image file: gray, with alpha, 16-bit, CMYK, rotated by EXIF, or animated.

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
    """Whether the bytes are a JPEG's that has no end, whose rest OpenCV would fill with gray.

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
        gray = (np.asarray(picture).astype("uint16") >> 8).astype("uint8")
        return np.repeat(gray[:, :, np.newaxis], 3, axis=2)
    return np.asarray(picture.convert("RGB"))[:, :, ::-1].copy()


def read_pair(image_path, label_path, channels=3):
    """Read an image and the label map that belongs to it.

    Args:
        image_path, label_path: The files; the latter may be None.
        channels: 3, or 1 to read the image as a gray one.

    Returns:
        uint8 arrays: the image ``[H, W, 3]``, BGR as OpenCV has it, or ``[H, W]`` of gray; and the
        label ``[H, W]``, of a palette image its indices, or None.

    Raises:
        InputError: A file is missing or unreadable, the label is not of one channel with values
            from 0 to 255, or the sizes differ.
    """
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR
    image = _read(image_path, lambda: cv2.imread(image_path, flag))
    if label_path is None:
        return image, None
    label = _read(label_path, lambda: np.asarray(Image.open(label_path)))
    if label.dtype.kind in "biu" and label.min() >= 0 and label.max() <= 255:
        label = label.astype("uint8", copy=False)  # of 1 or 16 bits
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(
            f"{label_path}: must be an 8-bit image of one channel; of colors "
            "tools/masks_from_colors.py makes one."
        )
    if label.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (label, image)]
        raise InputError(f"{label_path}: is {sizes[0]}, but its image {image_path} is {sizes[1]}.")
    return image, label


def make_sample(dataset, image, label, training):
    """What a PaddleSeg data set gives of an image and its label.

    Args:
        dataset: It has ``transforms``, ``edge`` and ``num_classes``.
        image: Array ``[H, W, 3]``, BGR, or ``[H, W]`` of gray.
        label: uint8 array ``[H, W]``, or None.
        training: Whether the transforms change the label, too.

    Returns:
        A dictionary: ``img`` float32 ``[3, H, W]``, or ``[1, H, W]`` of gray; where there is one,
        ``label`` uint8, ``[H, W]`` in training and ``[1, H, W]`` at the original size in
        validation; ``trans_info``, the sizes before each of the transforms that change them; of
        training with ``edge``, the map of class borders.
    """
    sample = {"img": image, "trans_info": [], "gt_fields": []}
    if label is not None:
        sample["label"] = label
        sample["gt_fields"] = ["label"] if training else []
    sample = dataset.transforms(sample)
    sample["img"] = sample["img"].astype("float32", copy=False)  # some transforms leave bytes
    if label is None:
        return sample
    if not training:
        sample["label"] = sample["label"][np.newaxis]
    elif dataset.edge:
        sample["edge"] = F.mask_to_binary_edge(
            sample["label"], radius=2, num_classes=dataset.num_classes
        )
    return sample


def _read(path, reader):
    if not os.path.isfile(path):  # reading a pipe would wait for a writer
        raise InputError(f"{path}: does not exist, or is no file.")
    try:
        array = reader()
    except Exception as error:  # of damaged files Pillow and OpenCV raise many kinds
        raise InputError(f"{path}: cannot be read as an image ({error}).") from error
    if array is None:  # what OpenCV returns for a truncated or foreign file
        raise InputError(f"{path}: cannot be read as an image; mend or remove it.")
    return array
