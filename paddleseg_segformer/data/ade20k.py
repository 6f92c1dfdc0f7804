"""ADE20K scene parsing: 150 classes, 20,210 training and 2,000 validation images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..errors import InputError
from ..fs import StrPath
from .classes import read_class_table
from .dataset import Dataset
from .image_io import read_pair
from .transforms import Compose

SPLITS = {"train": "training", "val": "validation"}
DOWNLOAD_HINT = "see docs/ade20k.md for the download"


class ADE20K(Dataset):
    """ADE20K in its own layout, ``images/`` and ``annotations/`` with ``training/, validation/``.

    Annotations have 0 for unlabeled pixels, which becomes the ignore index 255, and n for class
    n - 1.

    Args:
        transforms: As in ``Dataset``.
        dataset_root: Folder that contains ``images`` and ``annotations``.
        mode: ``"train"`` or ``"val"``.
        edge: As in ``Dataset``.

    Raises:
        InputError: A folder is missing or empty, or an image has no annotation. Reading a sample
            raises it as ``read_pair`` does, or if the annotation has a value above 150.
    """

    NUM_CLASSES = 150
    IGNORE_INDEX = 255
    IMG_CHANNELS = 3
    label_table = np.roll(np.arange(256, dtype="uint8"), 1)  # 0 becomes the ignore index
    CLASS_NAMES, PALETTE = read_class_table(Path(__file__).with_name("ade20k_classes.tsv"))

    def __init__(
        self,
        transforms: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        dataset_root: StrPath | None = None,
        mode: str = "train",
        edge: bool = False,
    ) -> None:
        if mode not in SPLITS:
            raise InputError(f"ADE20K: mode is {mode!r}; it must be one of {list(SPLITS)}.")
        if dataset_root is None:
            raise InputError(f"ADE20K: dataset_root is not set; {DOWNLOAD_HINT}.")
        self.dataset_root = os.fspath(dataset_root)
        self.transforms, self.mode, self.edge = Compose(transforms), mode, edge
        self.num_classes, self.ignore_index = self.NUM_CLASSES, self.IGNORE_INDEX
        self.img_channels = self.IMG_CHANNELS
        self.file_list = self._find_files()

    def _find_files(self):
        folders = [Path(self.dataset_root, x, SPLITS[self.mode]) for x in ("images", "annotations")]
        for folder in folders:
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; {DOWNLOAD_HINT}.")
        images, annotations = folders
        files = sorted(images.glob("*.jpg"))
        if not files:
            raise InputError(f"{images}: contains no .jpg image; {DOWNLOAD_HINT}.")
        annotated = {path.stem for path in annotations.glob("*.png")}
        unannotated = [file for file in files if file.stem not in annotated]
        if unannotated:
            raise InputError(
                f"{unannotated[0]}: has no annotation in {annotations} (nor have "
                f"{len(unannotated) - 1} other images); {DOWNLOAD_HINT}."
            )
        return [[str(file), str(annotations / f"{file.stem}.png")] for file in files]

    def _read(self, index):
        image, annotation = read_pair(*self.file_list[index], self.img_channels)
        if (highest := annotation.max()) > self.NUM_CLASSES:
            path, valid = self.file_list[index][1], f"0 (unlabeled) to {self.NUM_CLASSES}"
            raise InputError(f"{path}: has the value {highest}; ADE20K's values are {valid}.")
        return image, cv2.LUT(annotation, self.label_table)
