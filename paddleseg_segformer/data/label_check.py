"""Whether the values in label files are the classes and the ignore index of a config."""

import os
from pathlib import Path

import cv2
import numpy as np

from ..errors import InputError
from ..fs import as_list
from .classes import class_names, out_of_range_label
from .dataset import Dataset
from .image_io import read_label

MAX_LISTED = 12  # values or classes
BOTH = "in train_dataset and val_dataset"


def values_to_labels(dataset):
    """The label by value in a label file, uint8 ``[256]``."""
    table = getattr(dataset, "label_table", None)
    return np.arange(256, dtype="uint8") if table is None else table


def read_values(dataset, indices, skip_out_of_range=False):
    """The values in some label files, each with the first file that has it, as a dictionary.

    Unreadable files are left out, because reading the sample reports them; so are files with a
    label out of range if ``skip_out_of_range``.
    """
    first_files, table = {}, values_to_labels(dataset)
    for index in indices:
        path = str(dataset.file_list[index][1])
        try:
            # Not np.bincount, which takes 8 bytes for each pixel.
            counts = cv2.calcHist([read_label(path)], [0], None, [256], [0, 256])
        except InputError:
            continue
        values = np.flatnonzero(counts)
        wrong = out_of_range_label(table[values], dataset.num_classes, dataset.ignore_index)
        if wrong is None or not skip_out_of_range:
            first_files = {**dict.fromkeys(values.tolist(), path), **first_files}
    return first_files


def group_by_list(dataset, indices):
    """Indices of samples by the path of their list, or all by None if there are no several lists.

    Values have a meaning together only within a list: 255 is ignored in masks of 0, 1 and 255, but
    not in another data set's of 0 and 255.
    """
    groups, paths = {}, getattr(dataset, "list_paths", None)
    for index in indices:
        groups.setdefault(paths and paths[index], []).append(index)
    return groups


def find_error(dataset, section, first_files, labels, list_path=None):
    """What is wrong with all values that label files have.

    A value that is neither a class nor ignored is left to the check of its file if a ``label_map``
    cannot be proposed, because the data set takes none or has one.

    Args:
        dataset: PaddleSeg data set.
        section: Its key in the config.
        first_files: Dictionary with the values in its label files, each with the path of a file.
        labels: What the files are, such as "the 16 sampled labels".
        list_path: The list that they are in, if there are several.

    Returns:
        The file or section, and what is wrong with it and what to do about it; or None.
    """
    verb = "has" if labels.endswith("label") else "have"
    source = "" if list_path is None else f" of {list_path}"
    found = _find_error(dataset, section, first_files, f"{labels}{source} {verb}")
    if found is None or list_path is None or "label_map" not in found[1]:
        return found
    hint = "label_map holds for all lists: if the others' values differ, convert these labels"
    return found[0], f"{found[1][:-1]}; {hint}."


def sampled_labels(count):
    """A number of sampled labels in words."""
    return f"the {count} sampled label{'s' * (count > 1)}"


def _find_error(dataset, section, first_files, labels_have):
    if not (isinstance(dataset, Dataset) and first_files):
        return None
    number, ignored, values = dataset.num_classes, dataset.ignore_index, sorted(first_files)
    found = f"{labels_have} the value{_listing(values)}"
    classes = _classes(dataset, values)
    unmapped = dataset.label_table is None and ignored >= number
    if unmapped and (wrong := [v for v in values if v >= number and v != ignored]):
        return first_files[wrong[0]], (
            f"label {wrong[0]} is neither a class (0 to {number - 1}) nor ignored ({ignored}); "
            f"{found}: {_remedy(values, number, ignored)}."
        )
    if not classes:
        how = f", or {_set({values[-1]: 1})}" if unmapped else ""
        return section, f"{found}, so that all pixels are ignored; correct the labels{how}."
    if unmapped and number == 2 and values == [0, ignored]:
        return section, (
            f"{found}, of which {ignored} is ignored, so that class 1 has no pixels; if {ignored} "
            f"is class 1, {_set({ignored: 1})}, and if it is to be ignored, "
            f"label_map: {{{ignored}: {ignored}}}."
        )
    return None


def find_missing_classes(dataset, values, labels):
    """A warning of classes that no sampled label has, or None.

    Of many classes a few labels do not have all; then only fewer than three classes are suspect.

    Args:
        dataset: PaddleSeg data set.
        values: The values in the sampled label files.
        labels: The number of them.
    """
    number, classes = dataset.num_classes, _classes(dataset, values)
    missing = sorted({*range(number)} - {dataset.ignore_index, *classes})
    if not (missing and values) or (number > labels and len(classes) > 2):
        return None
    names = class_names(dataset)
    named = [str(i) if names[i] == str(i) else f"{i} ({names[i]})" for i in range(number)]
    verb = "have" if labels > 1 else "has"
    text = f"{sampled_labels(labels)} {verb} the value{_listing(sorted(values))}: "
    if len(classes) < 2:
        text += f"no class but {named[classes[0]]}" if classes else "all pixels are ignored"
    else:
        text += f"no pixel of class{_listing([named[i] for i in missing], 'es')}"
    text += "; correct the labels or num_classes" + (", unless the others are rare" * bool(classes))
    if getattr(dataset, "label_table", 0) is None:
        if dataset.ignore_index in values:
            text += f"; {dataset.ignore_index} is ignored, unless mapped to a class by label_map"
        if 0 not in classes and classes:
            counted = {value: value - 1 for value in range(1, number + 1)}
            text += f"; if the labels count from 1, {_set(counted)}"
    return text


def color_mask_error(dataset, path):
    """The error of a label file with several channels, with how to convert a folder of them."""
    roots = as_list(getattr(dataset, "dataset_root", None)) or [os.path.dirname(path)]
    root = next((str(x) for x in roots if Path(path).is_relative_to(x)), str(roots[0]))
    folder, *rest = os.path.relpath(path, root).split(os.sep)
    how = "convert color masks with segformer masks_from_colors"
    if rest and folder != os.pardir:
        how = (
            f"write the classes' names and colors into {root}/labels.txt, a line each such as "
            f"road 128 64 128, run segformer masks_from_colors {root} {folder} {folder}_indices, "
            f"and replace {folder}/ by {folder}_indices/ in the file lists"
        )
    return InputError(f"{path}: must be a single-channel 8-bit image of class indices; {how}.")


def _classes(dataset, values):
    """The classes in label files with these values, sorted."""
    table = values_to_labels(dataset)
    labels = {int(table[value]) if 0 <= value <= 255 else value for value in values}
    return sorted(labels.intersection(range(dataset.num_classes)) - {dataset.ignore_index})


def _remedy(values, number, ignored):
    """What to do about values of which some are neither classes nor ignored."""
    others = [value for value in values if value != ignored]
    counted = {value: value - 1 for value in range(1, number + 1)}
    if others[-1] == number and others[0] > 0:
        return f"if they count from 1, {_set(counted)}"
    for classes in (values, others):
        if len(classes) == number:
            label_map = {value: index for index, value in enumerate(classes)}
            return f"if these are the classes in this order, {_set(label_map)}"
    if others[-1] == number:
        return (
            f"if 0 is a class, set num_classes: {number + 1}; if it is unlabeled and the classes "
            f"count from 1, {_set({0: ignored, **counted})}; else correct the labels"
        )
    if len(values) > max(number, MAX_LISTED):
        return "save the masks lossless (PNG) and without antialiasing, or correct num_classes"
    return "correct the labels or num_classes, or map each value to a class by label_map"


def _set(label_map):
    entries = ", ".join(f"{v}: {label}" for v, label in label_map.items() if v != label)
    return f"set label_map: {{{entries}}} {BOTH}"


def _listing(items, plural="s"):
    """The end of a word and a list, such as "s 0, 1 and 2"; of many the first, and the number."""
    items = list(map(str, items))
    if len(items) == 1:
        return f" {items[0]}"
    if len(items) > MAX_LISTED:
        return f"{plural} {', '.join(items[:MAX_LISTED])} and {len(items) - MAX_LISTED} more"
    return f"{plural} {', '.join(items[:-1])} and {items[-1]}"
