"""The images that a model does worst and best on."""

import os
from bisect import insort
from pathlib import Path

import numpy as np

from ..deploy.report import UNLABELLED, Example, shrink
from . import distributed
from .metrics import Scores

KEPT = 8  # of each


class Extremes:
    """Keeps the worst and the best images of an evaluation, as small pictures.

    Args:
        dataset: The PaddleSeg data set that is evaluated.
    """

    def __init__(self, dataset):
        self._dataset, self._kept = dataset, []

    def __call__(self, index, labels, predicted, confusion):
        """Look at an image; see ``evaluate``. One without labels has no score and is left out."""
        scores = Scores(confusion, [])
        if not scores.present.any():
            return
        path = str(self._dataset.file_list[index][0])
        truth = np.where(labels == self._dataset.ignore_index, UNLABELLED, labels)
        maps = shrink(truth), shrink(predicted)
        example = Example(scores.miou, index, path, self._name(path), scores.iou, *maps)
        insort(self._kept, example)
        _drop_the_middle(self._kept)

    def worst_and_best(self):
        """The images of all processes: two lists of ``Example``, the most extreme first.

        Where there are too few images for both, each is in one of them.
        """
        kept = sorted(example for share in distributed.gather(self._kept) for example in share)
        _drop_the_middle(kept)
        half = (len(kept) + 1) // 2
        return kept[:half], kept[half:][::-1]

    def _name(self, path):
        """A file's path in the data set's folder."""
        root = getattr(self._dataset, "dataset_root", None) or os.path.dirname(path)
        path = Path(path)
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _drop_the_middle(kept):
    """Leave the ``KEPT`` first and the ``KEPT`` last of a sorted list."""
    del kept[KEPT:-KEPT]
