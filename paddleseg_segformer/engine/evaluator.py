"""Evaluation on a validation set: mIoU and accuracy at the images' original sizes."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml
from paddleseg.cvlibs import Config

from ..config import build, settings
from ..data import class_names, palette
from ..data.image_io import TypeCheck
from ..data.validate import check_types, read_sample
from ..device import parallel_imap
from ..errors import InputError, one_line
from ..fs import (
    StrPath,
    as_list,
    atomic_write,
    check_file_writable,
    named_write_error,
    output_dir,
)
from ..inference import Segmenter, TestConfig, load_model
from ..inference.model_source import trained_types
from ..log import logger, progress
from . import distributed
from .metrics import Scores, confusion_matrix
from .report import WorstBestImages, write_report


def validate(
    config: Config,
    model_path: StrPath,
    num_workers: int = 2,
    json_path: StrPath | None = None,
    report_dir: StrPath | None = None,
    **options: Any,
) -> Scores:
    """Evaluate a checkpoint on a config's validation set, and log the scores.

    Args:
        config: PaddleSeg's ``Config``.
        model_path: Weights of the whole model; see ``load_weights``.
        num_workers: Threads that read images; 0 means 1.
        json_path: File to write all figures to; see ``Scores.figures``.
        report_dir: Folder to write an HTML report to; see ``write_report``.
        options: Override keys of the config's ``test_config``; see ``TestConfig``.

    Raises:
        InputError: The config, weights, data or options are invalid, no label has a pixel to
            evaluate, or an output is not writable.
        RunError: Writing figures or report fails.
    """
    if "val_dataset" not in config.dic:
        raise InputError("val_dataset: is missing in the config; evaluation needs it.")
    writes_json = json_path is not None and distributed.rank() == 0
    if writes_json:
        check_file_writable(json_path, "--json")
    with contextlib.ExitStack() as stack:
        if report_dir is not None:
            stack.enter_context(output_dir(report_dir, "--report"))
        distributed.start()
        test_config = TestConfig.from_config(config, **options)
        logger.info("[EVAL] %s", test_config.describe())
        about = _describe(config, model_path)  # before building, which changes the config
        (dataset,) = build(config, "val_dataset")
        if len(dataset) == 0:
            raise InputError("val_dataset: has no images; check its dataset_root and file list.")
        worst_best = WorstBestImages(dataset) if report_dir is not None else None
        model = load_model(config, model_path)
        check_types(dataset, TypeCheck(trained_types(model_path)))
        scores = evaluate(model, dataset, test_config, num_workers, worst_best)
        if not scores.confusion.any():
            raise InputError(
                f"val_dataset: all pixels of its labels have the ignore index "
                f"{dataset.ignore_index}, so that there is nothing to evaluate; correct the labels "
                "or the config's ignore_index."
            )
    log_scores(scores, len(dataset))
    logger.info("[EVAL] Classes that occur:\n%s", scores.table())
    figures = {"images": len(dataset), "protocol": asdict(test_config), **scores.figures()}
    if writes_json:
        write_figures(Path(json_path), figures)
    if report_dir is not None:
        images = worst_best.gather()
        if distributed.rank() == 0:
            page = write_report(report_dir, figures, *images, palette(dataset), about)
            logger.info("[EVAL] Report: %s", page)
    return scores


def _describe(config, model_path):
    """The report's facts about an evaluation."""
    tree = settings(config)
    model, data = tree["model"], tree["val_dataset"]
    backbone = model.get("backbone", {}).get("type")
    return {
        "model": f"{model['type']} · {backbone}" if backbone else model["type"],
        "weights": str(model_path),
        "data": ", ".join(as_list(data.get("dataset_root"))) or data["type"],
        "device": paddle.get_device(),
        "config": yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100),
    }


def write_figures(path, figures):
    """Write the file of ``--json``, a ``Path``, from plain JSON; it is replaced atomically.

    Raises:
        RunError: Writing fails.
    """
    content = (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode()
    with named_write_error(f"--json {path}"):
        if path.exists() and not path.is_file():  # a device or a pipe
            path.write_bytes(content)
        else:
            atomic_write(Path(os.path.realpath(path)), content)


def evaluate(
    model: paddle.nn.Layer,
    dataset: Any,
    test_config: TestConfig,
    num_workers: int = 2,
    observe: Callable[[int, np.ndarray, np.ndarray, np.ndarray], object] | None = None,
) -> Scores:
    """Evaluate a model on a validation set, whose images the processes of a distributed job share.

    Args:
        model: A PaddleSeg model; its training mode is restored afterwards.
        dataset: A PaddleSeg data set in validation mode.
        num_workers: Threads that read images; 0 means 1.
        observe: Callback for each image of this process, with its index in the data set, ground
            truth and prediction ``[H, W]``, and confusion matrix; or None.

    Returns:
        ``Scores`` of one confusion matrix over the whole set, at the images' original sizes; the
        same in all processes.

    Raises:
        InputError: A label is out of range, or an image cannot be read.
    """
    classes, ignore_index = dataset.num_classes, dataset.ignore_index
    confusion = np.zeros([classes, classes], dtype="int64")
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    segmenter = Segmenter(model, dataset.transforms.transforms, test_config)
    was_training = model.training

    def segment(sample):
        index, labels, inputs = sample
        return index, labels, segmenter([inputs])[0].numpy()

    model.eval()
    try:
        samples = _prefetch(_without_transforms(dataset), indices, segmenter, num_workers or 1)
        results = parallel_imap(segment, samples, len(indices), segmenter.max_images)
        with contextlib.closing(results):  # after an error, no image is still being segmented
            for index, labels, prediction in progress(results, len(indices), "evaluate"):
                try:
                    matrix = confusion_matrix(labels, prediction, classes, ignore_index)
                except ValueError as error:
                    raise InputError(f"{dataset.file_list[index][1]}: {error}.") from error
                confusion += matrix
                if observe is not None:
                    observe(index, labels, prediction, matrix)
    finally:
        if was_training:
            model.train()
    return Scores(distributed.all_reduce_sum(confusion), class_names(dataset))


def _without_transforms(dataset):
    """A shallow copy of a data set whose samples are original images and ground truth."""
    dataset = copy.copy(dataset)
    dataset.transforms = copy.copy(dataset.transforms)  # PaddleSeg's Compose or ours
    dataset.transforms.transforms = []
    return dataset


def _prefetch(dataset, indices, segmenter, num_workers):
    """Yield (index, ground truth, augmented inputs) in order, read ahead by threads."""
    with ThreadPoolExecutor(num_workers) as pool:
        pending = []
        for index in indices:
            pending.append(pool.submit(_read, dataset, index, segmenter))
            if len(pending) > num_workers:
                yield pending.pop(0).result()
        yield from (sample.result() for sample in pending)


def _read(dataset, index, segmenter):
    sample = read_sample(dataset, index)
    image = sample["img"]
    image = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    if sample.get("is_8bit", True):
        image_8bit = image.astype("uint8")
        if (image_8bit == image).all():  # not so in custom data sets of 16-bit or float images
            image = image_8bit
    try:
        inputs = segmenter.augmented_inputs(image)
    except InputError:
        raise
    except Exception as error:  # PaddleSeg's transforms raise any exception of OpenCV and NumPy
        path = dataset.file_list[index][0]
        raise InputError(f"{path}: cannot be transformed ({one_line(error)}).") from error
    return index, np.asarray(sample["label"])[0], inputs


def log_scores(scores, images, of=""):
    """Log the scores in one line in PaddleSeg's format; ``of`` names the model, such as EMA."""
    logger.info(
        f"[EVAL] {of}#Images: {images} mIoU: {scores.miou:.4f} Acc: {scores.accuracy:.4f} "
        f"mAcc: {scores.mean_accuracy:.4f} "
        f"({scores.present.sum()} of {len(scores.names)} classes occur)"
    )
