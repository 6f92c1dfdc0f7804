"""Confusion matrix and the scores computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.classes import out_of_range_label


def confusion_matrix(labels, predictions, num_classes, ignore_index):
    """Count the pixels of each pair of true and predicted class.

    Args:
        labels: Ground truth, an integer array.
        predictions: Predicted classes, an integer array of the same shape.
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

        def plain(value):
            return None if np.isnan(value) else float(value)

        classes = zip(self.names, self.iou, self.class_accuracy)
        return {
            "miou": plain(self.miou),
            "accuracy": self.accuracy,
            "mean_accuracy": plain(self.mean_accuracy),
            "classes": [
                {"name": name, "iou": plain(iou), "accuracy": plain(accuracy)}
                for name, iou, accuracy in classes
            ],
            "confusion": self.confusion.tolist(),
        }

    def table(self) -> str:
        """One line per class that occurs: name, IoU, accuracy, share of the ground-truth pixels."""
        share = self.confusion.sum(axis=1) / max(self.confusion.sum(), 1)
        width = max(len("class"), *(len(name) for name in self.names))
        lines = [f"{'class':{width}}    IoU    Acc  share"]
        for i in np.flatnonzero(self.present):
            lines.append(
                f"{self.names[i]:{width}} {self.iou[i]:6.4f} {self.class_accuracy[i]:6.4f} "
                f"{share[i]:6.2%}"
            )
        return "\n".join(lines)


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")
