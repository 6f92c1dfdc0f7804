"""Scores from a confusion matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


def confusion_matrix(labels, predictions, num_classes, ignore_index):
    """Count the pixels of each pair of true and predicted class.

    Args:
        labels, predictions: Integer arrays of one shape.
        num_classes: Number of classes.
        ignore_index: Label of the pixels that do not count.

    Returns:
        int64 array ``[num_classes, num_classes]``; rows are true classes.

    Raises:
        ValueError: A label is neither a class nor the ignore index, or the shapes differ.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels of shape {labels.shape} for an image of {predictions.shape}")
    valid = labels != ignore_index
    labels = labels[valid].astype("int64")
    if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.max() if labels.max() >= num_classes else labels.min()
        raise ValueError(f"label {wrong} is neither a class (0 to {num_classes - 1}) nor ignored")
    pairs = labels * num_classes + predictions[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """The figures of an evaluation.

    A class that has no pixel in the labels has no IoU and no accuracy (NaN), and is left out of
    the means.

    Attributes:
        confusion: int64 array ``[classes, classes]`` of pixels; rows are true classes.
        names: The classes' names.
    """

    confusion: np.ndarray
    names: list[str]

    @property
    def present(self) -> np.ndarray:
        """Whether each class occurs in the labels: bool array ``[classes]``."""
        return self.confusion.sum(axis=1) > 0

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class, float64 ``[classes]``, 0 to 1 or NaN."""
        correct = np.diag(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - correct
        return self._where_present(correct, union)

    @property
    def class_accuracy(self) -> np.ndarray:
        """Share of each class's pixels that are found (recall), 0 to 1 or NaN."""
        return self._where_present(np.diag(self.confusion), self.confusion.sum(axis=1))

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in the labels."""
        return _mean(self.iou)

    @property
    def mean_accuracy(self) -> float:
        """Mean of the classes' accuracies."""
        return _mean(self.class_accuracy)

    @property
    def accuracy(self) -> float:
        """Share of all pixels that are right."""
        return float(np.trace(self.confusion) / max(self.confusion.sum(), 1))

    def _where_present(self, numerator, denominator):
        shares = np.full(len(numerator), np.nan)
        return np.divide(numerator, denominator, out=shares, where=self.present)

    def figures(self) -> dict[str, Any]:
        """Every figure, as plain JSON: a class that does not occur has null for its scores."""

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
        """The classes that occur, one a line: name, IoU, accuracy, share of the labels' pixels."""
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
