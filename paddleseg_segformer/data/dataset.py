"""PaddleSeg's data set of one's own images, from file lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from paddleseg import datasets
from paddleseg.transforms import Compose

from ..errors import InputError
from ..fs import StrPath
from .image_io import make_sample, read_pair

MODES = ("train", "val", "test")


class Dataset(datasets.Dataset):
    """PaddleSeg's, with its arguments; what it cannot read it names.

    A list's blank lines count for nothing, nor do a byte order mark, Windows' line ends and further
    blanks between two columns. A pair that is listed twice counts twice.

    Args:
        mode: ``"train"``, ``"val"`` or ``"test"``: which of the lists is read.
        dataset_root: Folder that the lists' paths are relative to.
        transforms: As in ``ADE20K``.
        num_classes: Number of classes.
        img_channels: 3, or 1 for gray images.
        train_path: List for training; a line has an image and a label.
        val_path: List for validation, likewise.
        test_path: List of images, whose labels may be left out.
        separator: What stands between the two; a blank stands for any white space.
        ignore_index: Label of the pixels that do not count.
        edge: As in ``ADE20K``.

    Raises:
        InputError: The folder or the list is missing, or a line has not two columns. Reading a
            sample raises it where a file is unreadable or of another size than its twin.
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
            raise InputError(f"Dataset: dataset_root is {dataset_root}, which is no folder.")
        if img_channels not in (1, 3):
            raise InputError(f"Dataset: img_channels is {img_channels}; it must be 1 or 3.")
        path = {"train": train_path, "val": val_path, "test": test_path}[self.mode]
        if path is None:
            raise InputError(f"Dataset: {self.mode}_path is not set; name the list of files.")
        self.dataset_root, self.num_classes = dataset_root, num_classes
        self.transforms = Compose(list(transforms), img_channels=img_channels)
        self.img_channels, self.ignore_index, self.edge = img_channels, ignore_index, edge
        self.file_list = [
            [os.path.join(dataset_root, name) for name in names] + [None] * (2 - len(names))
            for names in read_list(path, separator, columns=(1, 2) if self.mode == "test" else (2,))
        ]

    def __getitem__(self, index):
        """One sample, as ``make_sample`` has it; PaddleSeg's transforms get floats."""
        image_path, label_path = self.file_list[index]
        image, label = read_pair(image_path, label_path, self.img_channels)
        return make_sample(self, image.astype("float32"), label, training=self.mode != "val")


def read_list(path, separator=" ", columns=(2,)):
    """A list's lines, each as a list of its columns.

    Raises:
        InputError: It cannot be read, or a line has another number of columns.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read as a list ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no list of files, or not in UTF-8; save it so.") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = line.split() if separator == " " else line.strip().split(separator)
        if len(row) not in columns:
            raise InputError(
                f"{path}: line {number} has {len(row)} columns, where an image and its label are "
                f"wanted with {separator!r} between them; mend it, or set the data set's separator "
                "to what no name has in it."
            )
        rows.append([name.strip() for name in row])
    return rows
