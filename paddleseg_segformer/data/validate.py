"""Check samples: each when it is read, and some before training."""

import copy
import os
from contextlib import suppress

import numpy as np

from ..errors import InputError, one_line
from ..log import logger
from .classes import out_of_range_label
from .dataset import Dataset
from .image_check import find_spoiled_bands, has_plain_type, summarize
from .image_io import ColorMaskError, TypeCheck, read_image
from .label_check import (
    color_mask_error,
    find_error,
    find_missing_classes,
    group_by_list,
    read_values,
    sampled_labels,
)
from .transforms import normalization

QUICK_CHECK_SAMPLES = 16  # of each data set


def read_sample(dataset, index):
    """``dataset[index]``, with errors that name the sample's files.

    Raises:
        InputError: The sample cannot be read or transformed, or has a label out of range.
    """
    image, label = map(str, dataset.file_list[index])
    try:
        sample = dataset[index]
    except ColorMaskError as error:
        raise color_mask_error(dataset, label) from error
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
        raise color_mask_error(dataset, label)
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
    values = _check_labels(train_dataset, "train_dataset", tolerant)
    samples = _read_some(train_dataset, tolerant)
    _check_images(samples, one_size, min_size)
    if isinstance(train_dataset, Dataset):
        _check_values(train_dataset, samples)
    else:
        labels = [np.asarray(sample["label"]) for sample in samples if "label" in sample]
        values = {value for label in labels for value in np.unique(label).tolist()}
    if warning := find_missing_classes(train_dataset, values, len(samples)):
        logger.warning(f"train_dataset: {warning}")
    if val_dataset is None:
        return
    _check_files(val_dataset, "val_dataset", tolerant=False)
    _check_labels(val_dataset, "val_dataset", tolerant=False)
    _read_some(val_dataset, tolerant=False)
    val, train = val_dataset.num_classes, train_dataset.num_classes
    if val != train:
        raise InputError(
            f"val_dataset: has {val} classes, train_dataset {train}; they must be the same."
        )
    if isinstance(train_dataset, Dataset) and isinstance(val_dataset, Dataset):
        _check_normalize(train_dataset, val_dataset)
        check_types(val_dataset, TypeCheck(image_types(train_dataset)))


def image_types(dataset):
    """The types of the values in the sampled image files of a ``Dataset``; none of others."""
    types = set()
    check_types(dataset, lambda _, dtype: types.add(dtype))
    return sorted(types)


def check_types(dataset, check):
    """Call a function as ``TypeCheck`` for each sampled, readable image of a ``Dataset``."""
    for index in sampled_indices(dataset) if isinstance(dataset, Dataset) else ():
        path = str(dataset.file_list[index][0])
        if os.path.isfile(path) and has_plain_type(path):
            check(path, "uint8")
        else:
            with suppress(InputError):
                read_image(path, dataset.img_channels, check)


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
    # Once each: weights repeat them.
    paths = dict.fromkeys(path for pair in dataset.file_list for path in pair)
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        others = f", nor do {len(missing) - 1} other files" if len(missing) > 1 else ""
        message = f"{section}: {missing[0]} does not exist as a file{others}"
        if not tolerant:
            raise InputError(f"{message}; restore them or correct the file list.")
        logger.warning(message)


def sampled_indices(dataset):
    """Indices of samples evenly spaced over the data set."""
    count = min(QUICK_CHECK_SAMPLES, len(dataset))
    return np.linspace(0, len(dataset) - 1, count, dtype=int)


def _check_labels(dataset, section, tolerant):
    """The values in the sampled label files; an InputError if these are not labels as configured.

    Files that a tolerant run replaces are left out. Other data sets than this package's may change
    the values when they read them.
    """
    if not isinstance(dataset, Dataset):
        return {}
    all_values = {}
    for path, indices in group_by_list(dataset, sampled_indices(dataset)).items():
        values = read_values(dataset, indices, skip_out_of_range=tolerant)
        labels = sampled_labels(len(indices))
        if found := find_error(dataset, section, values, labels, path):
            raise InputError(": ".join(found))
        all_values.update(values)
    return all_values


def _check_values(dataset, samples):
    """Say what the training images are if not 8-bit, and refuse transforms that spoil them."""
    if not samples:
        return
    indices = sampled_indices(dataset)
    after, spoiled = find_spoiled_bands(dataset, samples)
    is_plain = all(has_plain_type(str(dataset.file_list[index][0])) for index in indices)
    if is_plain and not spoiled.any():
        return
    summary = summarize(dataset, indices)
    if not summary.is_8bit():
        count = f"{len(indices)} sampled image{'s' * (len(indices) > 1)}"
        logger.info(f"train_dataset: {summary.describe()}, in {count}")
    for warning in summary.warnings("train_dataset"):
        logger.warning(warning)
    summary.check_transformed("train_dataset", after, spoiled)


def _check_normalize(train_dataset, val_dataset):
    """Warn if validation, and so prediction, does not normalize images as training does."""
    bands = train_dataset.img_channels
    if val_dataset.img_channels != bands:
        return
    pairs = [normalization(data.transforms, bands) for data in (val_dataset, train_dataset)]
    if not np.allclose(*pairs, rtol=1e-6, atol=1e-6):
        texts = ["mean {}, std {}".format(*np.round(pair, 4).tolist()) for pair in pairs]
        logger.warning(
            f"val_dataset.transforms: normalize images with {texts[0]}, and train_dataset's with "
            f"{texts[1]}; the model, also in prediction, needs the same"
        )


def _read_some(dataset, tolerant):
    """The sampled samples, without the unreadable ones if tolerant."""
    samples = []
    for index in sampled_indices(dataset):
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
