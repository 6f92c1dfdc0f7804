"""Names and colours of a data set's classes."""

import csv
from pathlib import Path

import numpy as np
from paddleseg.utils.visualize import get_color_map_list


def read_class_table(path):
    """Read a tab-separated table with the columns name, red, green, blue.

    Returns:
        The names, and a uint8 array ``[classes, 3]`` of RGB colours.
    """
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    colours = [[int(row[channel]) for channel in ("red", "green", "blue")] for row in rows]
    return [row["name"] for row in rows], np.array(colours, dtype="uint8")


def class_names(dataset):
    """A name for each of the data set's classes.

    They come from its ``CLASS_NAMES``, else from a ``labels.txt`` in its folder (a name a line,
    PaddleSeg's convention), else they are numbers.
    """
    names = getattr(dataset, "CLASS_NAMES", None)
    if names is None:
        root = getattr(dataset, "dataset_root", None)
        labels = Path(str(root)) / "labels.txt" if root else None
        listed = labels is not None and labels.is_file()
        names = labels.read_text(encoding="utf-8-sig").split("\n") if listed else []
        names = [name.strip() for name in names if name.strip()]
    if len(names) != dataset.num_classes:
        names = [str(index) for index in range(dataset.num_classes)]
    return list(names)


def palette(dataset):
    """A uint8 array ``[classes, 3]`` of RGB colours.

    They come from the ``PALETTE`` of the data set or its class, else they are PaddleSeg's 256.
    """
    colours = getattr(dataset, "PALETTE", None)
    if colours is None:
        colours = np.reshape(get_color_map_list(256), [-1, 3])[:256]
    return np.asarray(colours, dtype="uint8")
