"""Scores against values computed by hand."""

import numpy as np
import pytest

from paddleseg_segformer.engine.metrics import Scores, confusion_matrix

LABELS = np.array([[0, 0, 0, 1], [1, 255, 3, 3]])
PREDICTIONS = np.array([[0, 0, 1, 1], [1, 0, 3, 2]])
NAMES = ["wall", "sky", "tree", "car"]


@pytest.fixture
def scores():
    return Scores(confusion_matrix(LABELS, PREDICTIONS, 4, 255), NAMES)


def test_confusion_matrix(scores):
    assert scores.confusion.tolist() == [[2, 1, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1]]


def test_scores(scores):
    """The tree is predicted but not in the ground truth: it has no IoU and is not in the means."""
    np.testing.assert_allclose(scores.iou, [2 / 3, 2 / 3, np.nan, 1 / 2])
    np.testing.assert_allclose(scores.class_accuracy, [2 / 3, 1, np.nan, 1 / 2])
    assert scores.miou == pytest.approx((2 / 3 + 2 / 3 + 1 / 2) / 3)
    assert scores.mean_accuracy == pytest.approx((2 / 3 + 1 + 1 / 2) / 3)
    assert scores.accuracy == pytest.approx(5 / 7)


def test_table_names_the_classes_that_occur(scores):
    lines = scores.table().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["wall", "sky", "car"]
    assert lines[1].split()[1:] == ["0.6667", "0.6667", "42.86%"]


@pytest.mark.parametrize("wrong", [4, 200, -1])
def test_label_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"label {wrong} "):
        confusion_matrix(np.array([[0, wrong]]), np.array([[0, 0]]), 4, 255)


def test_uint8_labels_do_not_overflow():
    labels = np.full([2, 2], 149, dtype="uint8")
    assert confusion_matrix(labels, labels, 150, 255)[149, 149] == 4
