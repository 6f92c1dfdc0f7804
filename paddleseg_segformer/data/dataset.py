"""Custom data sets, listed in text files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from paddleseg import datasets

from ..errors import InputError
from ..fs import StrPath
from .image_io import make_sample, read_pair
from .transforms import Compose

MODES = ("train", "val", "test")


class Dataset(datasets.Dataset):
    """PaddleSeg's ``Dataset``, with errors that name the offending file.

    In the lists, blank lines, a byte order mark, Windows line ends and additional spaces between
    columns are ignored.

    Args:
        mode: ``"train"``, ``"val"`` or ``"test"``: which of the lists is read.
        dataset_root: Folder that the paths in the lists are relative to.
        transforms: As in ``ADE20K``.
        num_classes: Number of classes.
        img_channels: 3, or 1 for grayscale images.
        train_path: Training list, with an image and its label map per line.
        val_path: Validation list, likewise.
        test_path: Test list, where label maps are optional.
        separator: Separator of the two columns; a space stands for any white space.
        ignore_index: Label of the pixels that are excluded from loss and metrics.
        edge: As in ``ADE20K``.

    Raises:
        InputError: The folder or the list is missing, or a line has the wrong number of columns.
            Reading a sample raises it if a file is unreadable, or image and label map differ in
            size.
    """

    def __init__(
        self,
        mode: str,
        dataset_root: StrPath,
        transforms: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        num_classes: int,
        img_channels: int = 3,
        train_path: StrPath | None = None,
        val_path: StrPath | None = None,
        test_path: StrPath | None = None,
        separator: str = " ",
        ignore_index: int = 255,
        edge: bool = False,
    ) -> None:
        self.mode = mode.lower()
        if self.mode not in MODES:
            raise InputError(f"Dataset: mode is {mode!r}; it must be one of {', '.join(MODES)}.")
        if not os.path.isdir(dataset_root):
            raise InputError(f"Dataset: dataset_root is {dataset_root}, which is not a folder.")
        if img_channels not in (1, 3):
            raise InputError(f"Dataset: img_channels is {img_channels}; it must be 1 or 3.")
        path = {"train": train_path, "val": val_path, "test": test_path}[self.mode]
        if path is None:
            raise InputError(f"Dataset: {self.mode}_path is not set; name the list of files.")
        self.dataset_root, self.num_classes = dataset_root, num_classes
        self.transforms = Compose(transforms)
        self.img_channels, self.ignore_index, self.edge = img_channels, ignore_index, edge
        self.file_list = [
            [os.path.join(dataset_root, name) for name in names] + [None] * (2 - len(names))
            for names in read_list(path, separator, columns=(1, 2) if self.mode == "test" else (2,))
        ]

    def __getitem__(self, index):
        """A sample; see ``make_sample``."""
        image_path, label_path = self.file_list[index]
        image, label = read_pair(image_path, label_path, self.img_channels)
        return make_sample(self, image, label, training=self.mode != "val")


def read_list(path, separator=" ", columns=(2,)):
    """Read a file list.

    Args:
        path: The file.
        separator: Separator of the columns; a space stands for any white space.
        columns: Allowed numbers of columns.

    Returns:
        A list with the list of columns of each line that is not blank.

    Raises:
        InputError: The file cannot be read, or a line has a different number of columns.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a list ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a UTF-8 text file; save the list in UTF-8.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = line.split() if separator == " " else line.strip().split(separator)
        if len(row) not in columns:
            raise InputError(
                f"{path}: line {number} has {len(row)} columns instead of an image and a label map "
                f"separated by {separator!r}; correct it, or set the data set's separator to one "
                "that no file name contains."
            )
        rows.append([name.strip() for name in row])
    return rows
