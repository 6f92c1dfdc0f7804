"""Check whole data sets: read all files, list the problems, and report the classes."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..config import build
from ..device import available_cpus
from ..errors import InputError
from ..log import logger, progress
from .classes import class_names, out_of_range_label
from .dataset import Dataset
from .image_check import ImageSummary, examine, find_spoiled_bands, yaml_list
from .image_io import ColorMaskError, is_cut_off, read_pair
from .label_check import color_mask_error, find_error, group_by_list, values_to_labels
from .validate import read_sample, sampled_indices

MAX_REPORTED = 20  # problems or classes; the rest are counted

# Smaller counts are a subset, or the synthetic scenes in the same layout.
EXPECTED_IMAGES = {"ADE20K": {"train": 20210, "val": 2000}}


def check_dataset_splits(config, num_workers=None):
    """Read all images and labels of the training and validation sets, and log a report.

    The report has each problem (a missing or unreadable file, different sizes of image and label,
    labels that are not those of the config), the frequency of each class, and class weights.

    Args:
        config: PaddleSeg's ``Config``.
        num_workers: Number of threads; default: the number of CPUs.

    Raises:
        InputError: There is a problem, or a data set cannot be built.
    """
    problems = []
    for section in ("train_dataset", "val_dataset"):
        if section not in config.dic:
            continue
        try:
            (dataset,) = build(config, section)
        except InputError as error:
            problems.append(str(error))
        else:
            problems += _check_dataset(dataset, section, num_workers or available_cpus())
    problems = list(dict.fromkeys(problems))  # a data set's weights repeat its files
    for problem in problems[:MAX_REPORTED]:
        logger.error(problem)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        rest = len(problems) - MAX_REPORTED
        hidden = f"; {rest} are not shown" if rest > 0 else ""
        raise InputError(f"{count} in the data{hidden}; correct those above and check again.")
    logger.info("No problem found")


def class_weights(pixels, pixels_with):
    """Class weights for the loss, from the frequencies of the classes.

    Args:
        pixels: Array ``[classes]``, the number of pixels of each class.
        pixels_with: Array ``[classes]``, the number of labeled pixels in the images that have it.

    Returns:
        Two float64 arrays ``[classes]``, 1 for classes without pixels: proportional to the inverse
        of the frequency, with mean 1 over the other classes; and by median frequency balancing
        (Eigen and Fergus, 2015), ``median(frequency) / frequency`` with
        ``frequency = pixels / pixels_with``.
    """
    inverse, balanced = np.ones([2, len(pixels)])
    occurs = pixels > 0
    inverse[occurs] = 1 / pixels[occurs]
    inverse[occurs] /= inverse[occurs].mean()
    frequency = pixels[occurs] / pixels_with[occurs]
    balanced[occurs] = np.median(frequency) / frequency
    return inverse, balanced


def _check_dataset(dataset, section, num_workers):
    """Log the classes of a data set, and return its problems."""
    number, ignored = dataset.num_classes, dataset.ignore_index
    table = values_to_labels(dataset)
    is_ignored = np.arange(256) == ignored  # of no label if -1, for example
    pixels, images, pixels_with = np.zeros([3, 256], dtype="int64")  # by label
    problems, color_mask, summary = [], None, ImageSummary()
    lists = group_by_list(dataset, range(len(dataset)))
    list_paths = {index: path for path, indices in lists.items() for index in indices}
    first_files = {path: {} for path in lists}  # by value
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda index: _examine_pair(dataset, index), range(len(dataset)))
        for index, result in enumerate(progress(results, len(dataset), f"check {section}")):
            path = str(dataset.file_list[index][1])
            if isinstance(result, ColorMaskError) and color_mask is None:
                color_mask = result = color_mask_error(dataset, path)  # once with the remedy
            if isinstance(result, InputError):
                problems.append(str(result))
                continue
            histogram, about_image = result
            summary.add(str(dataset.file_list[index][0]), *about_image)
            for value in np.flatnonzero(histogram).tolist():
                first_files[list_paths[index]].setdefault(value, path)
            counts = np.bincount(table, histogram, 256).astype("int64")
            wrong = out_of_range_label(np.flatnonzero(counts), number, ignored)
            if wrong is not None:
                problems.append(f"{path}: label {wrong} is neither a class nor ignored.")
                continue
            pixels += counts
            images += counts > 0
            pixels_with += (counts > 0) * counts[~is_ignored].sum()
    found = (find_error(dataset, section, x, "the labels", path) for path, x in first_files.items())
    found = list(filter(None, found))
    known = tuple(f"{where}: " for where, _ in found)
    problems = [*map(": ".join, found), *(x for x in problems if not x.startswith(known))]
    _log_images(section, summary)
    if section == "train_dataset" and isinstance(dataset, Dataset) and not problems:
        problems += _check_transforms(dataset, section, summary)
    without_class, pixels[is_ignored] = pixels[is_ignored].sum(), 0
    _log_classes(dataset, section, pixels[:number], images, without_class)
    if section == "train_dataset" and not problems:
        weights = zip(("inverse", "median"), class_weights(pixels[:number], pixels_with[:number]))
        lines = [f"weight: {yaml_list(values)}  # {name} frequency" for name, values in weights]
        logger.info("Class weights of CrossEntropyLoss, to choose from:\n%s", "\n".join(lines))
    return problems


def _check_transforms(dataset, section, summary):
    """The problem of transforms that cannot be applied to the training images, or spoil them."""
    try:
        samples = [read_sample(dataset, index) for index in sampled_indices(dataset)]
        summary.check_transformed(section, *find_spoiled_bands(dataset, samples))
    except InputError as error:
        return [str(error)]
    return []


def _log_images(section, summary):
    if summary.statistics is None:
        return
    about, normalize = summary.describe(), f"- {summary.normalize()}  # of these statistics"
    logger.info("%s: %s\n%s\n%s", section, about, summary.table(), normalize)
    for warning in summary.warnings(section):
        logger.warning(warning)


def _log_classes(dataset, section, pixels, images, ignored):
    kind = type(dataset).__name__
    expected = EXPECTED_IMAGES.get(kind, {}).get(dataset.mode)
    if expected is not None and len(dataset) != expected:
        logger.warning("%s: %d images; the whole %s has %d", section, len(dataset), kind, expected)
    names, total = class_names(dataset), max(pixels.sum() + ignored, 1)
    width = max(map(len, [*names, "(ignored)"]))
    lines = [f"{'class':{width}}  pixels  images"]
    lines += [f"{n:{width}} {p / total:7.3%} {i:7d}" for n, p, i in zip(names, pixels, images)]
    lines += [f"{'(ignored)':{width}} {ignored / total:7.3%}"]
    logger.info("%s: %d images\n%s", section, len(dataset), "\n".join(lines))
    missing = [name for name, count in zip(names, pixels) if count == 0]
    if missing and pixels.any() and section == "train_dataset":
        rest = len(missing) - MAX_REPORTED
        shown = ", ".join(missing[:MAX_REPORTED]) + (f" and {rest} more" if rest > 0 else "")
        logger.warning(
            f"{section}: no image has {shown}; values from 0 to {dataset.num_classes - 1} are "
            f"classes, {dataset.ignore_index} is ignored"
        )


def _examine_pair(dataset, index):
    """What an image and its label have, or an InputError.

    Returns:
        The number of pixels of each value in the label file, int64 ``[256]``; and the result of
        ``examine``.
    """
    image_path, label_path = map(str, dataset.file_list[index])
    channels = getattr(dataset, "img_channels", 3)
    try:
        image, label = read_pair(image_path, label_path, channels)
    except InputError as error:
        return error
    if is_cut_off(Path(image_path).read_bytes()):
        return InputError(f"{image_path}: is cut off; training would read the rest of it as gray.")
    return np.bincount(label.ravel(), minlength=256), examine(image_path, image, channels)
