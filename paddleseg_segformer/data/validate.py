"""Check data sets: each sample when it is read, some before training, or a whole data set."""

import copy
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..config import build
from ..device import available_cpus
from ..errors import InputError, one_line
from ..log import logger, progress
from .classes import class_names, out_of_range_label
from .image_io import is_cut_off, read_pair

QUICK_CHECK_SAMPLES = 16  # of each data set
MAX_REPORTED = 20  # problems or classes; the rest are counted

# Smaller counts are a subset, or the synthetic scenes in the same layout.
EXPECTED_IMAGES = {"ADE20K": {"train": 20210, "val": 2000}}


def read_sample(dataset, index):
    """``dataset[index]``, with errors that name the sample's files.

    Raises:
        InputError: The sample cannot be read or transformed, or has a label out of range.
    """
    image, label = map(str, dataset.file_list[index])
    try:
        sample = dataset[index]
    except InputError:
        raise
    except Exception as error:  # PaddleSeg's data sets raise any exception of OpenCV and NumPy
        reason = f"cannot be read or transformed ({one_line(error)})"
        raise InputError(f"{image} and {label}: {reason}.") from error
    if "label" not in sample:
        return sample
    labels = np.asarray(sample["label"])
    value = out_of_range_label(labels, dataset.num_classes, dataset.ignore_index)
    if value is None:
        return sample
    if np.squeeze(labels).ndim > 2:
        raise InputError(
            f"{label}: must be a single-channel image of class indices; convert a color mask with "
            "masks_from_colors."
        )
    raise InputError(
        f"{label}: label {value} is neither a class (0 to {dataset.num_classes - 1}) nor ignored "
        f"({dataset.ignore_index}); correct it, or the config's num_classes."
    )


def check_before_training(
    train_dataset, val_dataset=None, one_size=True, tolerant=False, min_size=1
):
    """Check within seconds that all files exist, and that some samples can be used.

    Args:
        train_dataset: PaddleSeg data set in training mode.
        val_dataset: Data set in validation mode, or None.
        one_size: Whether training samples must have one size, as in batches of several.
        tolerant: Whether missing and unreadable training samples are warnings.
        min_size: Smallest side of a training image that the model accepts, in pixels.

    Raises:
        InputError: A check fails: of the modes, files, labels and numbers of classes of the data
            sets, or of the size and dtype of training images.
    """
    _check_files(train_dataset, "train_dataset", tolerant)
    samples = _read_some(train_dataset, tolerant)
    _check_images(samples, one_size, min_size)
    _check_classes(samples, train_dataset.ignore_index)
    if val_dataset is None:
        return
    _check_files(val_dataset, "val_dataset", tolerant=False)
    _read_some(val_dataset, tolerant=False)
    val, train = val_dataset.num_classes, train_dataset.num_classes
    if val != train:
        raise InputError(
            f"val_dataset: has {val} classes, train_dataset {train}; they must be the same."
        )


def first_sample(dataset):
    """A copy of a PaddleSeg data set with only the first sample."""
    dataset = copy.copy(dataset)
    dataset.file_list = dataset.file_list[:1]
    return dataset


def _check_files(dataset, section, tolerant):
    mode = getattr(dataset, "mode", None)
    if section == "val_dataset" and mode not in ("val", None):
        raise InputError(f"{section}.mode: must be val, not {mode}.")
    if section == "train_dataset" and mode in ("val", "test"):  # others exist, such as trainaug
        raise InputError(f"{section}.mode: must be train, not {mode}.")
    if len(dataset) == 0:
        raise InputError(f"{section}: has no images; check its dataset_root and file list.")
    missing = [path for pair in dataset.file_list for path in pair if not os.path.isfile(path)]
    if missing:
        others = f", nor do {len(missing) - 1} other files" if len(missing) > 1 else ""
        message = f"{section}: {missing[0]} does not exist as a file{others}"
        if not tolerant:
            raise InputError(f"{message}; restore them or correct the file list.")
        logger.warning(message)


def _read_some(dataset, tolerant):
    """Samples evenly spaced over the data set, without the unreadable ones if tolerant."""
    samples, count = [], min(QUICK_CHECK_SAMPLES, len(dataset))
    for index in np.linspace(0, len(dataset) - 1, count, dtype=int):
        try:
            samples.append(read_sample(dataset, index))
        except InputError as error:
            if not tolerant:
                raise
            logger.warning(error)
    return samples


def _check_images(samples, one_size, min_size):
    dtypes = {str(sample["img"].dtype) for sample in samples} - {"float32"}
    if dtypes:
        raise InputError(
            f"train_dataset.transforms: return {min(dtypes)} images; the model needs float32: add "
            "Normalize after the transforms that resize and change colors."
        )
    sizes = sorted({sample["img"].shape[1:] for sample in samples})
    texts = ["x".join(map(str, reversed(size))) for size in sizes]
    if sizes and min(sizes[0]) < min_size:
        raise InputError(
            f"train_dataset.transforms: return images of {texts[0]}; the model needs at least "
            f"{min_size} pixels a side."
        )
    if one_size and len(sizes) > 1:
        raise InputError(
            f"train_dataset.transforms: return images of different sizes ({texts[0]} and "
            f"{texts[-1]}), which cannot be batched; crop and pad to one size."
        )


def _check_classes(samples, ignore_index):
    """Warn if the labels of training samples have at most one class."""
    labels = [np.asarray(sample["label"]) for sample in samples if "label" in sample]
    classes = {value for label in labels for value in np.unique(label)} - {ignore_index}
    sampled = f"{len(labels)} sampled labels"
    if labels and not classes:
        logger.warning(f"train_dataset: all pixels in the {sampled} are ignored ({ignore_index})")
    elif len(classes) == 1:
        logger.warning(
            f"train_dataset: the {sampled} have no class but {classes.pop()}; {ignore_index} is "
            "ignored, so convert black and white masks with masks_from_colors"
        )


def check_dataset_splits(config, num_workers=None):
    """Read all images and labels of the training and validation sets, and log a report.

    The report has each problem (a missing or unreadable file, different sizes of image and label, a
    label out of range) and the frequency of each class.

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
    for problem in problems[:MAX_REPORTED]:
        logger.error(problem)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        rest = len(problems) - MAX_REPORTED
        hidden = f"; {rest} are not shown" if rest > 0 else ""
        raise InputError(f"{count} in the data{hidden}; correct those above and check again.")
    logger.info("No problem found")


def _check_dataset(dataset, section, num_workers):
    """Log the class frequencies of a data set, and return its problems."""
    pixels, images = np.zeros([2, dataset.num_classes + 1], dtype="int64")  # the last: ignored
    problems = []
    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(lambda index: _count_pixels(dataset, index), range(len(dataset)))
        for result in progress(results, len(dataset), f"check {section}"):
            if isinstance(result, str):
                problems.append(result)
            else:
                pixels += result
                images += result > 0
    kind = type(dataset).__name__
    expected = EXPECTED_IMAGES.get(kind, {}).get(dataset.mode)
    if expected is not None and len(dataset) != expected:
        logger.warning("%s: %d images; the whole %s has %d", section, len(dataset), kind, expected)
    names, total = class_names(dataset), max(pixels.sum(), 1)
    width = max(map(len, [*names, "(ignored)"]))
    lines = [f"{'class':{width}}  pixels  images"]
    lines += [f"{n:{width}} {p / total:7.3%} {i:7d}" for n, p, i in zip(names, pixels, images)]
    lines += [f"{'(ignored)':{width}} {pixels[-1] / total:7.3%}"]
    logger.info("%s: %d images\n%s", section, len(dataset), "\n".join(lines))
    missing = [name for name, count in zip(names, images) if count == 0]
    if missing and section == "train_dataset":
        rest = len(missing) - MAX_REPORTED
        shown = ", ".join(missing[:MAX_REPORTED]) + (f" and {rest} more" if rest > 0 else "")
        logger.warning(
            f"{section}: no image has {shown}; values from 0 to {dataset.num_classes - 1} are "
            f"classes, {dataset.ignore_index} is ignored"
        )
    return problems


def _count_pixels(dataset, index):
    """The number of pixels of each class and ignored, int64 ``[num_classes + 1]``, or a problem."""
    image_path, label_path = dataset.file_list[index]
    try:
        _, label = read_pair(image_path, label_path)
        if is_cut_off(Path(image_path).read_bytes()):
            return f"{image_path}: is cut off; training would read the rest of it as gray."
    except InputError as error:
        return str(error)
    label = label - np.uint8(getattr(dataset, "LABEL_OFFSET", 0))
    histogram = np.bincount(label.ravel(), minlength=256)
    value = out_of_range_label(np.flatnonzero(histogram), dataset.num_classes, dataset.ignore_index)
    if value is not None:
        return f"{label_path}: label {value} is neither a class nor ignored."
    ignored = histogram[dataset.ignore_index]
    histogram[dataset.ignore_index] = 0
    return np.append(histogram[: dataset.num_classes], ignored)
