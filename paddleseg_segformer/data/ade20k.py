"""ADE20K scene parsing: 150 classes, 20,210 training and 2,000 validation images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from ..errors import InputError
from ..fs import StrPath
from .classes import read_class_table
from .image_io import make_sample, read_pair
from .transforms import Compose

SPLITS = {"train": "training", "val": "validation"}
DOWNLOAD_HINT = "see docs/ade20k.md for the download"


class ADE20K(paddle.io.Dataset):
    """ADE20K in its own layout, ``images/`` and ``annotations/`` with ``training/, validation/``.

    Annotations have 0 for unlabeled pixels, which becomes the ignore index 255, and n for class
    n - 1.

    Args:
        transforms: PaddleSeg transforms, applied to image and label map in training, to the image
            only in validation.
        dataset_root: Folder that contains ``images`` and ``annotations``.
        mode: ``"train"`` or ``"val"``.
        edge: Whether training samples include ``edge``, the binary map of class borders.

    Raises:
        InputError: A folder is missing or empty, or an image has no annotation. Reading a sample
            raises it if a file is unreadable, image and annotation differ in size, or the
            annotation has a value above 150.
    """

    NUM_CLASSES = 150
    IGNORE_INDEX = 255
    IMG_CHANNELS = 3
    LABEL_OFFSET = 1
    CLASS_NAMES, PALETTE = read_class_table(Path(__file__).with_name("ade20k_classes.tsv"))

    def __init__(
        self,
        transforms: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        dataset_root: StrPath | None = None,
        mode: str = "train",
        edge: bool = False,
    ) -> None:
        super().__init__()
        if mode not in SPLITS:
            raise InputError(f"ADE20K: mode is {mode!r}; it must be one of {list(SPLITS)}.")
        if dataset_root is None:
            raise InputError(f"ADE20K: dataset_root is not set; {DOWNLOAD_HINT}.")
        self.dataset_root = os.fspath(dataset_root)
        self.transforms = Compose(transforms)
        self.mode = mode
        self.edge = edge
        self.num_classes = self.NUM_CLASSES
        self.ignore_index = self.IGNORE_INDEX
        self.file_list = self._find_files()

    def _find_files(self):
        images = Path(self.dataset_root, "images", SPLITS[self.mode])
        annotations = Path(self.dataset_root, "annotations", SPLITS[self.mode])
        for folder in (images, annotations):
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder; {DOWNLOAD_HINT}.")
        names = sorted(path.name for path in images.glob("*.jpg"))
        if not names:
            raise InputError(f"{images}: contains no .jpg image; {DOWNLOAD_HINT}.")
        annotated = {path.name for path in annotations.glob("*.png")}
        pairs = [(name, Path(name).with_suffix(".png").name) for name in names]
        unannotated = [image for image, annotation in pairs if annotation not in annotated]
        if unannotated:
            raise InputError(
                f"{images / unannotated[0]}: has no annotation in {annotations} (nor have "
                f"{len(unannotated) - 1} other images); {DOWNLOAD_HINT}."
            )
        return [[str(images / i), str(annotations / a)] for i, a in pairs]

    def __len__(self):
        return len(self.file_list)

    def __getitem__(self, index):
        """A sample; see ``make_sample``."""
        image_path, label_path = self.file_list[index]
        image, annotation = read_pair(image_path, label_path)
        if annotation.max() > self.NUM_CLASSES:
            raise InputError(
                f"{label_path}: has the value {annotation.max()}; ADE20K's annotations range from "
                f"0 (unlabeled) to {self.NUM_CLASSES}."
            )
        label = annotation - np.uint8(self.LABEL_OFFSET)  # 0 wraps round to the ignore index
        return make_sample(self, image, label, training=self.mode == "train")
