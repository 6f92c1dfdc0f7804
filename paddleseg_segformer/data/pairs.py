"""An image and its label map: reading them, and making a sample of them."""

import os

import cv2
import numpy as np
import paddleseg.transforms.functional as F
from PIL import Image

from ..errors import InputError


def read_pair(image_path, label_path, channels=3):
    """Read an image and the label map that belongs to it.

    Args:
        image_path, label_path: The files; the latter may be None.
        channels: 3, or 1 to read the image as a grey one.

    Returns:
        uint8 arrays: the image ``[H, W, 3]``, BGR as OpenCV has it, or ``[H, W]`` of grey; and the
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
            f"{label_path}: must be an 8-bit image of one channel; of colours "
            "tools/masks_from_colours.py makes one."
        )
    if label.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (label, image)]
        raise InputError(f"{label_path}: is {sizes[0]}, but its image {image_path} is {sizes[1]}.")
    return image, label


def make_sample(dataset, image, label, training):
    """What a PaddleSeg data set gives of an image and its label.

    Args:
        dataset: It has ``transforms``, ``edge`` and ``num_classes``.
        image: Array ``[H, W, 3]``, BGR, or ``[H, W]`` of grey.
        label: uint8 array ``[H, W]``, or None.
        training: Whether the transforms change the label, too.

    Returns:
        A dictionary: ``img`` float32 ``[3, H, W]``, or ``[1, H, W]`` of grey; where there is one,
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
