"""Validating a data set: each sample as it is read, a few before training, or all of them."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..config import build
from ..device import available_cpus
from ..errors import InputError, one_line
from ..log import logger, progress
from .classes import class_names
from .image_io import is_cut_off, read_pair


def read_sample(dataset, index):
    """``dataset[index]``, with an error that names the sample's files.

    Raises:
        InputError: The sample cannot be read or transformed, or has a label out of range.
    """
    image, label = map(str, dataset.file_list[index])
    try:
        sample = dataset[index]
    except InputError:
        raise
    except Exception as error:  # PaddleSeg's data sets raise whatever OpenCV and NumPy do
        reason = one_line(error)
        raise InputError(
            f"{image} and {label}: cannot be read or transformed ({reason})."
        ) from error
    if "label" in sample:
        _check_range(np.asarray(sample["label"]), dataset, label)
    return sample


def _check_range(labels, dataset, path):
    classes = dataset.num_classes
    wrong = out_of_range_label(labels, classes, dataset.ignore_index)
    if wrong is None:
        return
    if np.squeeze(labels).ndim > 2:
        raise InputError(
            f"{path}: must be an image of one channel, whose values are classes; of colors "
            "tools/masks_from_colors.py makes one."
        )
    raise InputError(
        f"{path}: label {wrong} is neither a class (0 to {classes - 1}) nor "
        f"ignored ({dataset.ignore_index}); correct it, or the config's num_classes."
    )


def out_of_range_label(labels, num_classes, ignore_index):
    """The first value of an integer array that is neither a class nor ignored, or None."""
    if not labels.size or 0 <= labels.min() <= labels.max() < num_classes:
        return None
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    wrong = wrong[wrong != ignore_index]
    return wrong[0] if wrong.size else None


MAX_SAMPLES = 16  # samples of each set


def quick_check(train_dataset, val_dataset=None, one_size=True, tolerant=False, min_size=1):
    """Look at the data sets as far as seconds allow: for all files, into some.

    Args:
        train_dataset: A PaddleSeg data set in training mode.
        val_dataset: One in validation mode, or None.
        one_size: Whether training samples must be of one size, as for batches of several.
        tolerant: Whether training samples that cannot be read may be left out.
        min_size: The smallest side of an image that the model takes, in pixels.

    Raises:
        InputError: A set is empty or of the wrong mode, a file is missing, a sample that was tried
            cannot be read or has a label out of range, training samples are not of one size or too
            small or not of floats, or the sets have different numbers of classes.
    """
    _check_files(train_dataset, "train_dataset", tolerant)
    samples = _try_samples(train_dataset, tolerant)
    _check_images(samples, one_size, min_size)
    _look_for_classes(samples, train_dataset)
    if val_dataset is None:
        return
    _check_files(val_dataset, "val_dataset", tolerant=False)
    _try_samples(val_dataset, tolerant=False)
    if val_dataset.num_classes != train_dataset.num_classes:
        raise InputError(
            f"val_dataset: has {val_dataset.num_classes} classes, train_dataset "
            f"{train_dataset.num_classes}; they must be the same."
        )


def first_sample(dataset):
    """A PaddleSeg data set of another's first sample alone."""
    dataset = copy.copy(dataset)
    dataset.file_list = dataset.file_list[:1]
    return dataset


def _check_files(dataset, section, tolerant):
    wanted, mode = section.partition("_")[0], getattr(dataset, "mode", None)
    refused = mode not in ("val", None)
    if wanted == "train":  # for which some data sets have several, as trainaug
        refused = mode in ("val", "test")
    if refused:
        raise InputError(f"{section}.mode: must be {wanted}, not {mode}.")
    if len(dataset) == 0:
        raise InputError(f"{section}: has no images; look at its dataset_root and file list.")
    missing = [path for pair in dataset.file_list for path in pair if not os.path.isfile(path)]
    if missing:
        text = f"{section}: {missing[0]} does not exist as a file"
        if len(missing) > 1:
            text += f", nor do {len(missing) - 1} more files"
        if not tolerant:
            raise InputError(f"{text}; restore them or mend the file list.")
        logger.warning(text)


def _try_samples(dataset, tolerant):
    """The samples that can be read, of some spread over the set."""
    samples = []
    for index in np.linspace(0, len(dataset) - 1, min(MAX_SAMPLES, len(dataset)), dtype=int):
        try:
            samples.append(read_sample(dataset, index))
        except InputError as error:
            if not tolerant:
                raise
            logger.warning(error)
    return samples


def _check_images(samples, one_size, min_size):
    kinds = {str(sample["img"].dtype) for sample in samples} - {"float32"}
    if kinds:
        raise InputError(
            f"train_dataset.transforms: give images of {min(kinds)}; the model needs float32: add "
            "Normalize after what resizes and changes colors."
        )
    sizes = sorted({sample["img"].shape[1:] for sample in samples})
    if sizes and min(sizes[0]) < min_size:
        raise InputError(
            f"train_dataset.transforms: give images of {_text(sizes[0])}; "
            f"the model needs at least {min_size} pixels a side."
        )
    if one_size and len(sizes) > 1:
        raise InputError(
            f"train_dataset.transforms: give images of different sizes ({_text(sizes[0])} and "
            f"{_text(sizes[-1])}), which make no batch; end with a crop and padding to one size."
        )


def _look_for_classes(samples, dataset):
    labels = [np.asarray(sample["label"]) for sample in samples if "label" in sample]
    found = {value for label in labels for value in np.unique(label)} - {dataset.ignore_index}
    if labels and not found:
        logger.warning(
            "train_dataset: none of the %d samples that were tried has a pixel of a class; all are "
            "ignored (%d), and teach nothing",
            len(labels),
            dataset.ignore_index,
        )
    elif len(found) == 1:
        logger.warning(
            "train_dataset: the %d samples that were tried have no class but %d; %d is ignored, so "
            "make masks of classes of those in black and white, with tools/masks_from_colors.py",
            len(labels),
            *found,
            dataset.ignore_index,
        )


def _text(size):
    return "x".join(str(side) for side in reversed(size))


# ADE20K's published sizes, under which its own layout is what most people have.
EXPECTED = {"ADE20K": {"train": 20210, "val": 2000}}
SHOWN = 20  # problems; a set that is wrong throughout is wrong in one way


def full_check(config, num_workers=None):
    """Read every image and label of a configuration's training and validation sets, and report.

    Logged are each problem (a missing or unreadable file, sizes that differ, a label out of range)
    and how often each class occurs.

    Args:
        config: PaddleSeg's ``Config``.
        num_workers: Threads that read; None takes one for each CPU.

    Raises:
        InputError: There is a problem, or a set cannot be opened.
    """
    problems = []
    for split in ("train_dataset", "val_dataset"):
        if split not in config.dic:
            continue
        try:
            (dataset,) = build(config, split)
        except InputError as error:
            problems.append(str(error))
        else:
            problems += _check_split(dataset, split, num_workers or available_cpus())
    for problem in problems[:SHOWN]:
        logger.error(problem)
    if problems:
        more = f"; {len(problems) - SHOWN} are not shown" if len(problems) > SHOWN else ""
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise InputError(f"{count} in the data{more}; mend what is named above and check again.")
    logger.info("No problem found")


def _check_split(dataset, split, num_workers):
    counts = np.zeros(dataset.num_classes, dtype="int64")
    images = np.zeros(dataset.num_classes, dtype="int64")
    problems, ignored = [], 0
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda index: _pixels(dataset, index), range(len(dataset)))
        for problem, pixels in progress(results, len(dataset), f"check {split}"):
            if problem is not None:
                problems.append(problem)
                continue
            counts += pixels[: dataset.num_classes]
            images += pixels[: dataset.num_classes] > 0
            ignored += pixels[dataset.num_classes]
    kind = type(dataset).__name__
    expected = EXPECTED.get(kind, {}).get(dataset.mode)
    if expected is not None and len(dataset) != expected:
        logger.warning("%s: %d images; the whole %s has %d", split, len(dataset), kind, expected)
    names, total = class_names(dataset), max(counts.sum() + ignored, 1)
    width = max(map(len, [*names, "(ignored)"]))
    lines = [f"{'class':{width}}  pixels  images"]
    lines += [f"{n:{width}} {c / total:7.3%} {i:7d}" for n, c, i in zip(names, counts, images)]
    lines += [f"{'(ignored)':{width}} {ignored / total:7.3%}"]
    logger.info("%s: %d images\n%s", split, len(dataset), "\n".join(lines))
    missing = [name for name, number in zip(names, images) if number == 0]
    if missing and split == "train_dataset":
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        logger.warning(
            "%s: no image has %s%s; values from 0 to %d are classes, %d is ignored",
            split,
            ", ".join(missing[:SHOWN]),
            more,
            dataset.num_classes - 1,
            dataset.ignore_index,
        )
    return problems


def _pixels(dataset, index):
    """What is wrong with a sample, or None; and its pixels of each class, then the ignored ones."""
    image_path, label_path = dataset.file_list[index]
    try:
        _, label = read_pair(image_path, label_path)
        if is_cut_off(Path(image_path).read_bytes()):
            return f"{image_path}: is cut off; the rest of it is gray to training.", None
    except InputError as error:
        return str(error), None
    label = label - np.uint8(getattr(dataset, "LABEL_OFFSET", 0))
    histogram = np.bincount(label.ravel(), minlength=256)
    ignored = histogram[dataset.ignore_index]
    histogram[dataset.ignore_index] = 0
    beyond = np.flatnonzero(histogram[dataset.num_classes :])
    if beyond.size:
        value = beyond[0] + dataset.num_classes
        return f"{label_path}: label {value} is neither a class nor ignored.", None
    return None, np.append(histogram[: dataset.num_classes], ignored)
