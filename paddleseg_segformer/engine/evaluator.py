"""Evaluating a model on a data set."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from ..config import build
from ..data import class_names
from ..deploy import Protocol, Segmenter, load_model
from ..errors import InputError
from ..runtime import parallelism
from . import distributed
from .loader import read_sample
from .log import logger, progress
from .metrics import Scores, confusion_matrix

# Views that are gathered from several images, to be worked on at the same time.
MOST_AT_ONCE = 8


def validate(config, model_path, num_workers=2, json_path=None, **options):
    """Score a checkpoint on the configuration's validation set, and log the scores.

    Args:
        config: PaddleSeg's ``Config``.
        model_path: Weights of the whole model; see ``load_weights``.
        num_workers: Threads that read images while the model works.
        json_path: File to write every figure to; see ``Scores.figures``.
        options: Override keys of the configuration's ``test_config``; see ``Protocol``.

    Returns:
        ``Scores``.
    """
    if json_path is not None:
        check_writable(json_path)
    distributed.start()
    protocol = Protocol.of_config(config, **options)
    (dataset,) = build(config, "val_dataset")
    scores = evaluate(load_model(config, model_path), dataset, protocol, num_workers)
    log_scores(scores, len(dataset))
    logger.info("[EVAL] Classes that occur:\n%s", scores.table())
    if json_path is not None and distributed.rank() == 0:
        figures = {"images": len(dataset), "protocol": asdict(protocol), **scores.figures()}
        text = json.dumps(figures, indent=1, allow_nan=False)
        Path(json_path).write_text(text + "\n", encoding="utf-8")
    return scores


def check_writable(path):
    """Refuse a ``--json`` file that could not be written: before hours of work, not after them."""
    path = Path(path).absolute()
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"--json {path}: cannot be written; name a file in an existing folder.")


def evaluate(model, dataset, protocol, num_workers=2):
    """Score a model on a validation set.

    Every process of a distributed job takes its share of the images; all get the same scores.

    Args:
        model: A PaddleSeg model; its training mode is restored afterwards.
        dataset: A PaddleSeg data set in validation mode.
        protocol: ``deploy.Protocol``.
        num_workers: Threads that read images while the model works.

    Returns:
        ``Scores`` of one confusion matrix over the whole set, at the images' original sizes.

    Raises:
        InputError: A label is out of range, or an image cannot be read.
    """
    classes = dataset.num_classes
    confusion = np.zeros([classes, classes], dtype="int64")
    indices = range(distributed.rank(), len(dataset), distributed.world_size())
    segmenter = Segmenter(model, dataset.transforms, protocol)
    was_training = model.training
    model.eval()
    try:
        samples = _read_ahead(dataset, indices, segmenter, num_workers)
        for chunk in _chunks(progress(samples, len(indices), "evaluate")):
            predictions = segmenter([views for _, _, views in chunk])
            for (index, labels, _), predicted in zip(chunk, predictions):
                try:
                    confusion += confusion_matrix(
                        labels, predicted.numpy(), classes, dataset.ignore_index
                    )
                except ValueError as error:
                    raise InputError(f"{dataset.file_list[index][1]}: {error}.") from error
    finally:
        if was_training:
            model.train()
    return Scores(distributed.sum_over_processes(confusion), class_names(dataset))


def _read_ahead(dataset, indices, segmenter, num_workers):
    """Yield (index, labels, views) in order, the next images being read meanwhile."""
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
    if set(segmenter.protocol.scales) != {1}:
        image = cv2.imread(dataset.file_list[index][0], dataset.transforms.read_flag)
    return index, np.asarray(sample["label"])[0], segmenter.views(image, sample)


def _chunks(samples):
    """Lists of samples that together have a view for each thread, if not too many."""
    chunk = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) * len(chunk[0][2]) >= min(parallelism(), MOST_AT_ONCE):
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
