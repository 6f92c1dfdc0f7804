"""Class names and colors of a data set, and the valid range of its labels."""

import csv
import logging
import re
from functools import cache
from pathlib import Path

import numpy as np
from paddleseg.utils.visualize import get_color_map_list

from ..errors import InputError
from ..fs import as_list

logger = logging.getLogger(__name__)

NAME_AND_COLOR = re.compile(r"\s*(.*?)(?:\s+(\d+)\s+(\d+)\s+(\d+))?\s*")


def out_of_range_label(labels, num_classes, ignore_index):
    """A value that is neither a class, 0 to ``num_classes - 1``, nor ``ignore_index``; or None.

    Args:
        labels: Integer array of any shape.
    """
    if labels.size == 0 or 0 <= labels.min() <= labels.max() < num_classes:
        return None
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    wrong = wrong[wrong != ignore_index]
    return wrong.flat[0] if wrong.size else None


def read_class_table(path):
    """The names and RGB colors, uint8 ``[classes, 3]``, in a tab-separated table with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    colors = [[int(row[channel]) for channel in ("red", "green", "blue")] for row in rows]
    return [row["name"] for row in rows], np.array(colors, dtype="uint8")


def read_labels(path):
    """Read a labels.txt: on each line the name of a class and optionally its color, R G B.

    Returns:
        The names, and a list of ``[red, green, blue]`` or None.

    Raises:
        InputError: A color is out of range, or the file is not UTF-8.
    """
    names, colors = [], []
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error}); save it as UTF-8.") from error
    for line in filter(str.strip, text.splitlines()):
        name, *color = NAME_AND_COLOR.fullmatch(line).groups()
        # Not int() of any number of digits, which Python limits.
        color = None if None in color else [int(x) if len(x) < 10 else 256 for x in color]
        if color is not None and max(color) > 255:
            text = line.strip()[:100]
            raise InputError(f"{path}: {text!r} has no valid color; R G B are 0 to 255.")
        names.append(name)
        colors.append(color)
    return names, colors


def class_names(dataset):
    """A data set's ``CLASS_NAMES``, else those in its folder's ``labels.txt``, else numbers.

    Of several folders, the first with a ``labels.txt`` counts; another one with other names is an
    ``InputError``.
    """
    names = getattr(dataset, "CLASS_NAMES", None)
    if names is None:
        names, _ = _read_dataset_labels(dataset)
    if len(names) != dataset.num_classes:
        names = [str(index) for index in range(dataset.num_classes)]
    return list(names)


def palette(dataset):
    """RGB colors of a data set's classes, uint8 ``[n, 3]``.

    They are its ``PALETTE``, else PaddleSeg's 256 colors, overridden by those in ``labels.txt`` in
    its folder.
    """
    colors = getattr(dataset, "PALETTE", None)
    if colors is None:
        colors = np.reshape(get_color_map_list(256), [-1, 3])[:256]
        for index, color in enumerate(_read_dataset_labels(dataset)[1]):
            colors[index] = colors[index] if color is None else color
    return np.asarray(colors, dtype="uint8")


def _read_dataset_labels(dataset):
    """``read_labels`` of the data set's folder; empty without a file for its number of classes.

    Raises:
        InputError: The data set has several folders, whose files name different classes.
    """
    first, found = None, ([], [])
    for root in as_list(getattr(dataset, "dataset_root", None)):
        path = Path(root) / "labels.txt"
        if not path.is_file():
            continue
        names, colors = read_labels(path)
        if len(names) != dataset.num_classes:
            _warn_once(
                f"{path}: has {len(names)} names, but num_classes is {dataset.num_classes}; the "
                "classes are numbered instead"
            )
        elif first is None:
            first, found = path, (names, colors)
        elif names != found[0]:
            i = next(i for i, pair in enumerate(zip(names, found[0])) if len({*pair}) > 1)
            raise InputError(
                f"{path}: class {i} is {names[i]}, but {found[0][i]} in {first}; data sets that "
                "are used together need the same classes in the same order."
            )
    return found


@cache
def _warn_once(text):
    logger.warning(text)
