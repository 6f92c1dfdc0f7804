"""The images that a report shows."""

from types import SimpleNamespace

import numpy as np
import pytest

from paddleseg_segformer.engine.metrics import confusion_matrix
from paddleseg_segformer.engine.report import WorstBestImages

LABELS = np.array([[0] * 50 + [255] * 2 + [1] * 50])


def look_at(right):
    """Show an image for each count of pixels of class 0 that are right; None has no labels."""
    files = [(f"/data/set/images/{n}.png", "") for n in range(len(right))]
    dataset = SimpleNamespace(file_list=files, ignore_index=255, dataset_root="/data/set")
    extremes = WorstBestImages(dataset)
    for index, count in enumerate(right):
        labels = np.full_like(LABELS, 255) if count is None else LABELS
        predicted = np.array([[0] * (count or 0) + [1] * (102 - (count or 0))])
        extremes(index, labels, predicted, confusion_matrix(labels, predicted, 3, 255))
    return extremes.worst_and_best()


@pytest.mark.parametrize("count", [1, 2, 7, 15, 16, 17, 40])
def test_order(count):
    """Eight of each at most, the most extreme first; where there are few, no image is twice."""
    right = np.random.default_rng(count).permutation(50)[:count].tolist()
    worst, best = look_at(right)
    ranked = [right.index(n) for n in sorted(right)]
    of_worst = min(8, (count + 1) // 2)
    assert [example.index for example in worst] == ranked[:of_worst]
    assert [example.index for example in best] == ranked[::-1][: min(8, count // 2)]


def test_scores_are_over_the_classes_in_the_image():
    """Class 0 has 20 of 50 pixels, and class 1 its 50 beside the other 30."""
    (example,), _ = look_at([20])
    np.testing.assert_allclose(example.iou, [20 / 50, 50 / 80, np.nan])
    assert example.miou == pytest.approx((20 / 50 + 50 / 80) / 2)
    assert example.name == "images/0.png"
    np.testing.assert_array_equal(example.truth, LABELS)
    assert (example.prediction[0, :20] == 0).all() and (example.prediction[0, 20:] == 1).all()


def test_an_image_without_labels_is_left_out():
    worst, best = look_at([None, 3, None])
    assert [example.index for example in worst + best] == [1]
