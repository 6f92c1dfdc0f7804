"""Confusion matrix and the scores computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.classes import out_of_range_label


def confusion_matrix(labels, predictions, num_classes, ignore_index):
    """Count the pixels of each pair of true and predicted class.

    Args:
        labels, predictions: Ground truth and predicted classes, integer arrays of one shape.
        num_classes: Number of classes.
        ignore_index: Label of pixels that are not counted.

    Returns:
        int64 array ``[num_classes, num_classes]``; rows are true classes.

    Raises:
        ValueError: A label is neither a class nor the ignore index, or the shapes differ.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels of shape {labels.shape} for an image of {predictions.shape}")
    valid = labels != ignore_index
    labels = labels[valid]
    wrong = out_of_range_label(labels, num_classes, ignore_index)
    if wrong is not None:
        raise ValueError(f"label {wrong} is neither a class (0 to {num_classes - 1}) nor ignored")
    pairs = labels.astype("int64") * num_classes + predictions[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores of an evaluation.

    A class without a pixel in the ground truth has no IoU and no accuracy (NaN), and is left out
    of the means.

    Attributes:
        confusion: int64 array ``[classes, classes]`` of pixel counts; rows are true classes.
        names: Class names.
    """

    confusion: np.ndarray
    names: list[str]

    @property
    def present(self) -> np.ndarray:
        """Whether each class occurs in the ground truth: bool array ``[classes]``."""
        return self.confusion.sum(axis=1) > 0

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, TP / (TP + FP + FN): float64, 0 to 1 or NaN."""
        correct = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - correct
        return self._where_present(correct, union)

    @property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy (recall) of each class, TP / (TP + FN): float64, 0 to 1 or NaN."""
        return self._where_present(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in the ground truth."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean accuracy over the classes that occur in the ground truth."""
        return _mean(self.class_accuracy)

    @property
    def accuracy(self) -> float:
        """Pixel accuracy."""
        return float(np.trace(self.confusion) / max(self.confusion.sum(), 1))

    def _where_present(self, numerator, denominator):
        ratios = np.full(len(numerator), np.nan)
        return np.divide(numerator, denominator, out=ratios, where=self.present)

    def figures(self) -> dict[str, Any]:
        """All scores as plain JSON, where NaN is null."""
        classes = zip(self.names, self.iou, self.class_accuracy)
        return {
            "miou": finite_or_none(self.miou),
            "accuracy": self.accuracy,
            "mean_accuracy": finite_or_none(self.mean_accuracy),
            "classes": [
                {"name": name, "iou": finite_or_none(iou), "accuracy": finite_or_none(accuracy)}
                for name, iou, accuracy in classes
            ],
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """One line per class that occurs: name, IoU, accuracy, share of the ground-truth pixels."""
        shares = self.confusion.sum(axis=1) / max(self.confusion.sum(), 1)
        width = max(map(len, ["class", *self.names]))
        lines = [f"{'class':{width}}    IoU    Acc  share"]
        rows = zip(self.names, self.iou, self.class_accuracy, shares, self.present)
        for name, iou, accuracy, share, present in rows:
            if present:
                lines.append(f"{name:{width}} {iou:6.4f} {accuracy:6.4f} {share:6.2%}")
        return "\n".join(lines)


def finite_or_none(value):
    """A number as plain JSON, which has no NaN and no infinity."""
    return float(value) if np.isfinite(value) else None


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
