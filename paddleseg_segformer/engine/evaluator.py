"""Evaluating a model on a data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
import yaml
from paddleseg.cvlibs import Config

from ..config import build, settings
from ..data import class_names, palette
from ..data.validate import read_sample
from ..device import num_threads
from ..errors import InputError, RunError
from ..fs import StrPath, atomic_write, check_dir_writable, check_file_writable
from ..inference import Segmenter, TestConfig, load_model
from ..log import logger, progress
from . import distributed
from .metrics import Scores, confusion_matrix
from .report import WorstBestImages, describe_test_config, write_report

# AugmentedInputs that are gathered from several images, to be worked on at the same time.
MAX_BATCHED_INPUTS = 8


def validate(
    config: Config,
    model_path: StrPath,
    num_workers: int = 2,
    json_path: StrPath | None = None,
    report_dir: StrPath | None = None,
    **options: Any,
) -> Scores:
    """Score a checkpoint on the configuration's validation set, and log the scores.

    Args:
        config: PaddleSeg's ``Config``.
        model_path: Weights of the whole model; see ``load_weights``.
        num_workers: Threads that read images while the model works; 0 is one, too.
        json_path: File to write every figure to; see ``Scores.figures``.
        report_dir: Folder for a page about them; see ``write_report``.
        options: Override keys of the configuration's ``test_config``; see ``TestConfig``.

    Returns:
        ``Scores``.

    Raises:
        InputError: The input is at fault, or figures or report cannot be written.
        RunError: Figures or page cannot be written after all.
    """
    if "val_dataset" not in config.dic:
        raise InputError("val_dataset: is missing in the config, so there is nothing to score on.")
    if json_path is not None and distributed.rank() == 0:
        check_file_writable(json_path, "--json")
    if report_dir is not None:
        check_dir_writable(report_dir, "--report")
    distributed.start()
    test_config = TestConfig.from_config(config, **options)
    logger.info("[EVAL] %s", describe_test_config(asdict(test_config)))
    about = _describe(config, model_path)
    (dataset,) = build(config, "val_dataset")
    extremes = WorstBestImages(dataset) if report_dir is not None else None
    model = load_model(config, model_path)
    scores = evaluate(model, dataset, test_config, num_workers, extremes)
    log_scores(scores, len(dataset))
    logger.info("[EVAL] Classes that occur:\n%s", scores.table())
    figures = {"images": len(dataset), "protocol": asdict(test_config), **scores.figures()}
    if json_path is not None and distributed.rank() == 0:
        write_figures(Path(json_path), figures)
    if report_dir is not None:
        shown = extremes.worst_and_best()
        if distributed.rank() == 0:
            page = write_report(report_dir, figures, *shown, palette(dataset), about)
            logger.info("[EVAL] Report: %s", page)
    return scores


def _describe(config, model_path):
    """What a report says of where its figures come from; to be asked before building."""
    tree = settings(config)
    model, data = tree["model"], tree["val_dataset"]
    names = [model["type"], model.get("backbone", {}).get("type")]
    return {
        "model": " · ".join(filter(None, names)),
        "weights": str(model_path),
        "data": str(data.get("dataset_root") or data["type"]),
        "device": paddle.get_device(),
        "config": yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100),
    }


def write_figures(path, figures):
    """Write the file that ``--json`` names; it is there whole or as it was.

    Args:
        path: ``Path``, which was checked.
        figures: Plain JSON.

    Raises:
        RunError: It cannot be written after all.
    """
    content = (json.dumps(figures, indent=1, allow_nan=False) + "\n").encode()
    try:
        if path.exists() and not path.is_file():  # a device or a pipe, whose place no file takes
            path.write_bytes(content)
        else:
            atomic_write(path.resolve(), content)
    except OSError as error:
        raise RunError(f"--json {path}: cannot be written ({error.strerror}).") from error


def evaluate(
    model: paddle.nn.Layer,
    dataset: Any,
    test_config: TestConfig,
    num_workers: int = 2,
    observe: Callable[[int, np.ndarray, np.ndarray, np.ndarray], object] | None = None,
) -> Scores:
    """Score a model on a validation set.

    Every process of a distributed job takes its share of the images; all get the same scores.

    Args:
        model: A PaddleSeg model; its training mode is restored afterwards.
        dataset: A PaddleSeg data set in validation mode.
        test_config: ``deploy.TestConfig``.
        num_workers: Threads that read images while the model works; 0 is one, too.
        observe: None, or what to call after each image that this process works on, with its
            number in the data set, labels and predictions ``[H, W]``, and confusion matrix.

    Returns:
        ``Scores`` of one confusion matrix over the whole set, at the images' original sizes.

    Raises:
        InputError: A label is out of range, or an image cannot be read.
    """
    classes = dataset.num_classes
    confusion = np.zeros([classes, classes], dtype="int64")
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    segmenter = Segmenter(model, dataset.transforms, test_config)
    was_training = model.training
    model.eval()
    try:
        samples = _read_ahead(dataset, indices, segmenter, num_workers)
        for chunk in _chunks(progress(samples, len(indices), "evaluate")):
            predictions = segmenter([views for _, _, views in chunk])
            for (index, labels, _), predicted in zip(chunk, predictions):
                predicted = predicted.numpy()
                try:
                    counted = confusion_matrix(labels, predicted, classes, dataset.ignore_index)
                except ValueError as error:
                    raise InputError(f"{dataset.file_list[index][1]}: {error}.") from error
                confusion += counted
                if observe is not None:
                    observe(index, labels, predicted, counted)
    finally:
        if was_training:
            model.train()
    return Scores(distributed.all_reduce_sum(confusion), class_names(dataset))


def _read_ahead(dataset, indices, segmenter, num_workers):
    """Yield (index, labels, views) in order, the next images being read meanwhile."""
    num_workers = num_workers or 1
    with ThreadPoolExecutor(num_workers) as pool:
        waiting = []
        for index in indices:
            waiting.append(pool.submit(_read, dataset, index, segmenter))
            if len(waiting) > num_workers:
                yield waiting.pop(0).result()
        for sample in waiting:
            yield sample.result()


def _read(dataset, index, segmenter):
    sample = read_sample(dataset, index)
    image = None
    if set(segmenter.test_config.scales) != {1}:
        image = cv2.imread(dataset.file_list[index][0], dataset.transforms.read_flag)
    return index, np.asarray(sample["label"])[0], segmenter.views(image, sample)


def _chunks(samples):
    """Lists of samples that together have a view for each thread, if not too many."""
    chunk = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) * len(chunk[0][2]) >= min(num_threads(), MAX_BATCHED_INPUTS):
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def log_scores(scores, images, of=""):
    """Log the figures in one line, in PaddleSeg's manner; ``of`` says of which model."""
    logger.info(
        "[EVAL] %s#Images: %d mIoU: %.4f Acc: %.4f mAcc: %.4f (%d of %d classes occur)",
        of,
        images,
        scores.miou,
        scores.accuracy,
        scores.mean_accuracy,
        scores.present.sum(),
        len(scores.names),
    )
