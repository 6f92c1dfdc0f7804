"""The selection of the worst and best images for the report."""

from types import SimpleNamespace

import numpy as np
import pytest

from paddleseg_segformer.engine.metrics import confusion_matrix
from paddleseg_segformer.engine.report import WorstBestImages

LABELS = np.array([[0] * 50 + [255] * 2 + [1] * 50])


def worst_and_best(correct):
    """Add an image per number of correct pixels of class 0; None means an image without labels."""
    files = [(f"/data/set/images/{n}.png", "") for n in range(len(correct))]
    dataset = SimpleNamespace(file_list=files, ignore_index=255, dataset_root="/data/set")
    images = WorstBestImages(dataset)
    for index, count in enumerate(correct):
        labels = np.full_like(LABELS, 255) if count is None else LABELS
        prediction = np.array([[0] * (count or 0) + [1] * (102 - (count or 0))])
        images(index, labels, prediction, confusion_matrix(labels, prediction, 3, 255))
    return images.gather()


@pytest.mark.parametrize("count", [1, 2, 7, 15, 16, 17, 40])
def test_order(count):
    """At most eight of each, the most extreme first, and none twice."""
    correct = np.random.default_rng(count).permutation(50)[:count].tolist()
    worst, best = worst_and_best(correct)
    ranked = [correct.index(n) for n in sorted(correct)]
    assert [image.index for image in worst] == ranked[: min(8, (count + 1) // 2)]
    assert [image.index for image in best] == ranked[::-1][: min(8, count // 2)]


def test_scores_are_over_the_classes_in_the_image():
    """20 of the 50 pixels of class 0 are correct, and the other 30 are predicted as class 1."""
    (image,), _ = worst_and_best([20])
    np.testing.assert_allclose(image.iou, [20 / 50, 50 / 80, np.nan])
    assert image.miou == pytest.approx((20 / 50 + 50 / 80) / 2)
    assert image.name == "images/0.png"
    np.testing.assert_array_equal(image.ground_truth, LABELS)
    assert (image.prediction[0, :20] == 0).all() and (image.prediction[0, 20:] == 1).all()


def test_an_image_without_labels_is_left_out():
    worst, best = worst_and_best([None, 3, None])
    assert [image.index for image in worst + best] == [1]
