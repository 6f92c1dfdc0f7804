"""Label maps by tiles against whole maps of scores."""

import numpy as np
import paddle
import pytest
from reference import bilinear

from paddleseg_segformer.ops import WindowLogits, label_map, linear_weights, probability_map


def part(logits, size):
    h, w = logits.shape[1:]
    weights = linear_weights(h, size[0]), linear_weights(w, size[1])
    return WindowLogits.from_logits(paddle.to_tensor(logits, dtype="float32"), *weights)


@pytest.mark.parametrize(
    "source, size", [((20, 35), (80, 140)), ((5, 4), (5, 4)), ((9, 9), (65, 3))]
)
def test_one_view(source, size):
    logits = np.random.default_rng(0).normal(size=[7, *source])
    actual = label_map([[part(logits, size)]]).numpy()
    assert (actual == bilinear(logits[None], size)[0].argmax(axis=0)).mean() > 0.999  # ties


def test_mean_of_softmax():
    """AugmentedInputs of different sizes; a sure view outweighs two that are less sure."""
    rng = np.random.default_rng(0)
    views = [rng.normal(size=[5, *size]) * 5 for size in ((20, 30), (10, 15), (31, 44))]
    total = 0
    for logits in views:
        exponentials = np.exp(bilinear(logits[None], (70, 90))[0])
        total = total + exponentials / exponentials.sum(axis=0)
    actual = label_map([[part(logits, (70, 90))] for logits in views]).numpy()
    assert (actual == total.argmax(axis=0)).mean() > 0.9999

    sure, unsure = np.array([[[5.0]], [[0.0]]]), np.array([[[0.0]], [[0.5]]])
    assert not label_map([[part(logits, (2, 2))] for logits in (sure, unsure, unsure)]).any()


def test_parts_are_summed():
    """Two windows side by side, far enough apart for tiles that only one of them reaches."""
    left, right = np.random.default_rng(0).normal(size=[2, 4, 10, 50])
    halves = np.eye(200)[:, :100], np.eye(200)[:, 100:]
    across = linear_weights(50, 100)
    view = [
        WindowLogits.from_logits(
            paddle.to_tensor(logits, dtype="float32"), linear_weights(10, 20), half @ across
        )
        for logits, half in zip((left, right), halves)
    ]
    expected = [bilinear(logits[None], (20, 100))[0] for logits in (left, right)]
    expected = np.concatenate(expected, axis=2).argmax(axis=0)
    assert (label_map([view]).numpy() == expected).mean() > 0.999  # ties


@pytest.mark.parametrize("sizes", [[(20, 30)], [(20, 30), (31, 44)]])
def test_probabilities(sizes):
    """Of one view and of two, by more than one tile."""
    rng = np.random.default_rng(0)
    views = [rng.normal(size=[5, *size]) * 3 for size in sizes]
    expected = 0
    for logits in views:
        exponentials = np.exp(bilinear(logits[None], (70, 90))[0])
        expected = expected + exponentials / exponentials.sum(axis=0) / len(views)
    parts = [[part(logits, (70, 90))] for logits in views]
    actual = probability_map(parts).numpy()
    np.testing.assert_allclose(actual, expected.transpose([1, 2, 0]), atol=1e-5)
    assert (label_map(parts).numpy() == expected.argmax(axis=0)).mean() > 0.999  # ties
