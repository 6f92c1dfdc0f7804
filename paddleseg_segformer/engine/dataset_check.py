"""Checking a data set before days of training on it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..config import build
from ..data import class_names
from ..data.image_io import is_cut_off, read_pair
from ..device import available_cpus
from ..errors import InputError
from ..log import logger, progress

# ADE20K's published sizes, under which its own layout is what most people have.
EXPECTED = {"ADE20K": {"train": 20210, "val": 2000}}
SHOWN = 20  # problems; a set that is wrong throughout is wrong in one way


def check_datasets(config, num_workers=None):
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
            problems += _check(dataset, split, num_workers or available_cpus())
    for problem in problems[:SHOWN]:
        logger.error(problem)
    if problems:
        more = f"; {len(problems) - SHOWN} are not shown" if len(problems) > SHOWN else ""
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        raise InputError(f"{count} in the data{more}; mend what is named above and check again.")
    logger.info("No problem found")


def _check(dataset, split, num_workers):
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
