"""Custom data sets, listed in text files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import paddleseg.transforms.functional as F
from paddleseg import datasets

from ..config_check import is_whole
from ..errors import InputError
from ..fs import StrPath, as_list, check_not_special
from .image_io import read_pair
from .transforms import Compose

logger = logging.getLogger(__name__)

MODES = ("train", "val", "test")
MAX_BANDS = 512  # of OpenCV, which takes an array with more for something else


class Dataset(datasets.Dataset):
    """PaddleSeg's ``Dataset``, with ``label_map`` and errors that name the offending file.

    Args:
        mode: ``"train"``, ``"val"`` or ``"test"``: which of the lists is read.
        dataset_root: Folder that the paths in the lists are relative to; or several, one for each
            list.
        transforms: PaddleSeg transforms, applied to image and label map in training, to the image
            only in validation.
        num_classes: Number of classes.
        img_channels: Number of bands of the images: 3 for RGB, 1 for grayscale, or any other up to
            512.
        train_path: List with an image and its label map per line; or several such lists, which
            together are the data set.
        val_path: Likewise, for validation.
        test_path: Likewise, but label maps are optional.
        separator: Separator of the two columns; a space stands for any white space.
        ignore_index: Label of the pixels that are excluded from loss and metrics.
        edge: Whether training samples include ``edge``, the binary map of class borders.
        weights: For each list of a training set, how often an epoch has each of its images, from
            1; None means once.
        label_map: Class index or ``ignore_index`` by value in the label files, 0 to 255, such as
            ``{255: 1}``; other values are indices already.

    Raises:
        InputError: A folder or list is missing, a line has the wrong number of columns, the
            numbers of folders, lists and weights differ, or ``label_map`` maps to something else.
            Reading a sample raises it as ``read_pair`` does.
    """

    label_table: np.ndarray | None = None  # the label by value in a file, uint8 [256]
    list_paths: list[str] | None = None  # of several lists, that of each sample

    def __init__(
        self,
        mode: str,
        dataset_root: StrPath | Sequence[StrPath],
        transforms: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        num_classes: int,
        img_channels: int = 3,
        train_path: StrPath | Sequence[StrPath] | None = None,
        val_path: StrPath | Sequence[StrPath] | None = None,
        test_path: StrPath | Sequence[StrPath] | None = None,
        separator: str = " ",
        ignore_index: int = 255,
        edge: bool = False,
        weights: Sequence[int] | None = None,
        label_map: Mapping[int, int] | None = None,
    ) -> None:
        self.mode = mode.lower()
        if self.mode not in MODES:
            raise InputError(f"Dataset: mode is {mode!r}; it must be one of {', '.join(MODES)}.")
        if not is_whole(img_channels) or img_channels > MAX_BANDS:
            problem = f"img_channels is {img_channels!r}; it must be a whole number from 1 to"
            raise InputError(f"Dataset: {problem} {MAX_BANDS}.")
        paths = as_list({"train": train_path, "val": val_path, "test": test_path}[self.mode])
        if not paths:
            raise InputError(f"Dataset: {self.mode}_path is not set; name the list of files.")
        self.dataset_root, self.num_classes = dataset_root, num_classes
        self.transforms = Compose(transforms)
        self.img_channels, self.ignore_index, self.edge = img_channels, ignore_index, edge
        if label_map is not None:
            self.label_table = _label_table(label_map, num_classes, ignore_index)
        columns, self.file_list, list_paths = (1, 2) if self.mode == "test" else (2,), [], []
        for root, path, weight in self._sources(as_list(dataset_root), paths, weights):
            rows = [
                [os.path.join(root, name) for name in names] + [None] * (2 - len(names))
                for names in read_list(path, separator, columns)
            ]
            self.file_list += rows * weight
            if len(paths) > 1:
                list_paths += [str(path)] * (len(rows) * weight)
                self.list_paths = list_paths
                logger.info(f"{path}: {len(rows)} images, {weight} x in an epoch")

    def _sources(self, roots, paths, weights):
        """(folder, list, weight) of each list of files, checked."""
        for root in roots:
            if not os.path.isdir(root):
                raise InputError(f"Dataset: dataset_root is {root}, which is not a folder.")
        if len(roots) not in (1, len(paths)):
            raise InputError(
                f"Dataset: dataset_root and {self.mode}_path have {len(roots)} and {len(paths)} "
                "entries; give one folder, or one for each list."
            )
        if weights is None:
            weights = [1] * len(paths)
        elif self.mode != "train":
            raise InputError(
                f"Dataset: weights is {weights!r} in mode {self.mode}, where each image counts "
                "once; remove it."
            )
        if not (isinstance(weights, (list, tuple)) and all(map(is_whole, weights))):
            raise InputError(
                f"Dataset: weights is {weights!r}; it must be a list of whole numbers above 0."
            )
        if len(weights) != len(paths):
            raise InputError(
                f"Dataset: weights is {weights!r}, but train_path has {len(paths)} entries; give "
                "one weight for each."
            )
        return zip(roots * (len(paths) // len(roots)), paths, weights)

    def __getitem__(self, index):
        """Read and transform a sample, as PaddleSeg's data sets do.

        Returns:
            A dictionary: ``img``, float32 ``[img_channels, H, W]``; ``label`` (if given), uint8,
            ``[H, W]`` in training and ``[1, H, W]`` at the original size in validation;
            ``trans_info``, the image size before each resize or padding; ``is_8bit``, whether the
            file has 8 bits; in training with ``edge``, the binary map of class borders.
        """
        image, label = self._read(index)
        sample, training = {"img": image, "trans_info": [], "gt_fields": []}, self.mode != "val"
        if label is not None:
            sample["label"] = label
            sample["gt_fields"] = ["label"] if training else []
        sample = self.transforms(sample)
        sample["img"] = sample["img"].astype("float32", copy=False)
        if label is not None and not training:
            sample["label"] = sample["label"][np.newaxis]
        elif label is not None and self.edge:
            sample["edge"] = F.mask_to_binary_edge(
                sample["label"], radius=2, num_classes=self.num_classes
            )
        return sample

    def _read(self, index):
        image, label = read_pair(*self.file_list[index], self.img_channels)
        if label is not None and self.label_table is not None:
            label = cv2.LUT(label, self.label_table)
        return image, label


def _label_table(label_map, num_classes, ignore_index):
    """The label by value in a file, uint8 ``[256]``."""
    table = np.arange(256, dtype="uint8")
    if not (isinstance(label_map, Mapping) and label_map):
        raise InputError(
            f"Dataset: label_map is {label_map!r}; it must map values, such as {{255: 1}}."
        )
    for value, label in label_map.items():
        value = int(value) if str(value).isdecimal() else value  # the keys in a manifest are text
        for number in (value, label):
            if type(number) is not int or not 0 <= number <= 255:
                raise InputError(
                    f"Dataset: label_map has {value!r}: {label!r}; both must be whole numbers from "
                    "0 to 255."
                )
        if label >= num_classes and label != ignore_index:
            raise InputError(
                f"Dataset: label_map maps {value} to {label}, which is neither a class (0 to "
                f"{num_classes - 1}) nor ignored ({ignore_index})."
            )
        table[value] = label
    return table


def read_list(path, separator=" ", columns=(2,)):
    """Read the columns of each line of a file list.

    Blank lines, a byte order mark and spaces around the columns are ignored. As a separator, a
    space stands for any white space. ``columns`` are the allowed numbers of columns.

    Raises:
        InputError: The file cannot be read, or a line has a different number of columns.
    """
    try:
        check_not_special(path)
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a list ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a UTF-8 text file; save the list in UTF-8.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        row = split_line(line, separator)
        if not row:
            continue
        if len(row) not in columns:
            raise InputError(
                f"{path}: line {number} has {len(row)} columns instead of an image and a label map "
                f"separated by {separator!r}; correct it, or set the data set's separator to one "
                "that no file name contains."
            )
        rows.append(row)
    return rows


def split_line(line, separator):
    """The columns of a line of a file list; none of a blank line."""
    if separator == " ":
        return line.split()
    return [name.strip() for name in line.strip().split(separator)] if line.strip() else []
