"""Names and colors of a data set's classes."""

import csv
import logging
import re
from functools import cache
from pathlib import Path

import numpy as np
from paddleseg.utils.visualize import get_color_map_list

from ..errors import InputError

logger = logging.getLogger(__name__)

NAME_AND_COLOR = re.compile(r"\s*(.*?)(?:\s+(\d+)\s+(\d+)\s+(\d+))?\s*")


def read_class_table(path):
    """Read a tab-separated table with the columns name, red, green, blue.

    Returns:
        The names, and a uint8 array ``[classes, 3]`` of RGB colors.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    colors = [[int(row[channel]) for channel in ("red", "green", "blue")] for row in rows]
    return [row["name"] for row in rows], np.array(colors, dtype="uint8")


def read_labels(path):
    """Read a labels.txt: a class a line, its name and, where one is wanted, its color as R G B.

    Returns:
        The names, and a list with a color ``[red, green, blue]`` or None for each.

    Raises:
        InputError: A color is none, or the file is not UTF-8.
    """
    names, colors = [], []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error}); save it as such.") from error
    for line in text.splitlines():
        if not line.strip():
            continue
        name, *color = NAME_AND_COLOR.fullmatch(line).groups()
        color = None if None in color else [int(value) for value in color]
        if color is not None and max(color) > 255:
            raise InputError(f"{path}: {line.strip()!r} has no color; R G B go from 0 to 255.")
        names.append(name)
        colors.append(color)
    return names, colors


def class_names(dataset):
    """A name for each of the data set's classes.

    They come from its ``CLASS_NAMES``, else from the ``labels.txt`` in its folder (PaddleSeg's
    convention), else they are numbers.
    """
    names = getattr(dataset, "CLASS_NAMES", None)
    if names is None:
        names, _ = _labels_of(dataset)
    if len(names) != dataset.num_classes:
        names = [str(index) for index in range(dataset.num_classes)]
    return list(names)


def palette(dataset):
    """A uint8 array ``[256, 3]`` of RGB colors, or one of a ``PALETTE``'s length.

    They come from the ``PALETTE`` of the data set or its class, else they are PaddleSeg's 256, but
    for those that the ``labels.txt`` in its folder gives.
    """
    colors = getattr(dataset, "PALETTE", None)
    if colors is None:
        colors = np.reshape(get_color_map_list(256), [-1, 3])[:256]
        for index, color in enumerate(_labels_of(dataset)[1]):
            colors[index] = colors[index] if color is None else color
    return np.asarray(colors, dtype="uint8")


def _labels_of(dataset):
    """What ``read_labels`` finds in a data set's folder; nothing where it is not of its classes."""
    root = getattr(dataset, "dataset_root", None)
    path = Path(str(root)) / "labels.txt" if root else None
    if path is None or not path.is_file():
        return [], []
    names, colors = read_labels(path)
    if len(names) != dataset.num_classes:
        _warn_once(
            f"{path}: has {len(names)} names, but num_classes is {dataset.num_classes}; the "
            "classes are numbered instead"
        )
        return [], []
    return names, colors


@cache
def _warn_once(text):
    logger.warning(text)
