"""Reading an image and its label map."""

import os

import cv2
import numpy as np
from PIL import Image

from ..errors import InputError


def read_pair(image_path, label_path):
    """Read an image and the label map that belongs to it.

    Returns:
        uint8 arrays: the image ``[H, W, 3]``, BGR as OpenCV has it, and the label ``[H, W]``, of a
        palette image its indices.

    Raises:
        InputError: A file is missing or unreadable, the label is not of one channel with values
            from 0 to 255, or the sizes differ.
    """
    image = _read(image_path, lambda: cv2.imread(image_path, cv2.IMREAD_COLOR))
    label = _read(label_path, lambda: np.asarray(Image.open(label_path)))
    if label.dtype.kind in "biu" and label.min() >= 0 and label.max() <= 255:
        label = label.astype("uint8", copy=False)  # of 1 or 16 bits
    if label.ndim != 2 or label.dtype != np.uint8:
        raise InputError(
            f"{label_path}: must be an 8-bit image of one channel; of colours "
            "tools/masks_from_colours.py makes one."
        )
    if label.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (label, image)]
        raise InputError(f"{label_path}: is {sizes[0]}, but its image {image_path} is {sizes[1]}.")
    return image, label


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
