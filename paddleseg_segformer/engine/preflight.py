"""What is checked in the seconds before the first iteration, not hours later."""

import copy
import os
import shutil

import numpy as np

from ..errors import InputError
from ..log import logger
from ..models import MIN_IMAGE_SIZE
from .dataloader import read_sample

MAX_SAMPLES = 16  # samples of each set


def check_datasets(train_dataset, val_dataset=None, one_size=True, tolerant=False):
    """Look at the data sets as far as seconds allow: for all files, into some.

    Args:
        train_dataset: A PaddleSeg data set in training mode.
        val_dataset: One in validation mode, or None.
        one_size: Whether training samples must be of one size, as for batches of several.
        tolerant: Whether training samples that cannot be read may be left out.

    Raises:
        InputError: A set is empty or of the wrong mode, a file is missing, a sample that was tried
            cannot be read or has a label out of range, training samples are not of one size or too
            small or not of floats, or the sets have different numbers of classes.
    """
    _check_files(train_dataset, "train_dataset", tolerant)
    samples = _try_samples(train_dataset, tolerant)
    _check_images(samples, one_size)
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


def _check_images(samples, one_size):
    kinds = {str(sample["img"].dtype) for sample in samples} - {"float32"}
    if kinds:
        raise InputError(
            f"train_dataset.transforms: give images of {min(kinds)}; the model needs float32: add "
            "Normalize after what resizes and changes colors."
        )
    sizes = sorted({sample["img"].shape[1:] for sample in samples})
    if sizes and min(sizes[0]) < MIN_IMAGE_SIZE:
        raise InputError(
            f"train_dataset.transforms: give images of {_text(sizes[0])}; "
            f"the model needs at least {MIN_IMAGE_SIZE} pixels a side."
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


def check_space(save_dir, model, saves, saved, keep, use_ema):
    """See whether the checkpoints that a run will keep fit on the disk.

    Args:
        save_dir: The run's folder.
        model: The model; the optimizer is taken to keep two moments of each weight, as Adam does.
        saves: How many checkpoints the run writes from its start to its end.
        saved: How many of them are there.
        keep: How many of them will be kept at a time; 0 keeps all.
        use_ema: Whether there is an averaged model.

    Raises:
        InputError: They do not.
    """
    weights = 4 * sum(tensor.size for tensor in model.state_dict().values()) * (1 + use_ema)
    checkpoint = weights + 8 * sum(p.size for p in model.parameters() if not p.stop_gradient)
    # One more than is kept, while the next is written; and the best models.
    wanted = min(saves, keep + 1) if keep > 0 else saves
    needed = checkpoint * max(0, wanted - saved) + weights
    free = shutil.disk_usage(save_dir).free
    if needed > free:
        raise InputError(
            f"--save_dir {save_dir}: {free / 1e9:.2f} GB are free, but {wanted} checkpoints of "
            f"{checkpoint / 1e9:.2f} GB need {needed / 1e9:.2f}; make room, lower "
            "--keep_checkpoint_max or raise --save_interval."
        )


def _text(size):
    return "x".join(str(side) for side in reversed(size))
