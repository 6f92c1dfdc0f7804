"""Label maps and probability maps, computed by tiles, against full-size logits."""

import numpy as np
import paddle
import pytest
from reference import bilinear

from paddleseg_segformer.ops import WindowLogits, label_map, linear_weights, probability_map
from paddleseg_segformer.ops.argmax import MIN_NUMPY_CLASSES


def window(logits, size):
    """Logits ``[C, h, w]`` of a window that is the whole image."""
    h, w = logits.shape[1:]
    weights = linear_weights(h, size[0]), linear_weights(w, size[1])
    return WindowLogits.from_logits(paddle.to_tensor(logits, dtype="float32"), *weights)


def test_the_first_of_equal_logits_wins():
    """As in NumPy's argmax, whatever computes it."""
    for classes in (7, MIN_NUMPY_CLASSES):
        logits = np.zeros([classes, 2, 2])
        logits[3:] = 1
        actual = label_map([[window(logits, (4, 4))]])
        assert actual.dtype == paddle.int32 and (actual == 3).all()


def mean_softmax(inputs, size):
    total = 0
    for logits in inputs:
        exponentials = np.exp(bilinear(logits[None], size)[0])
        total = total + exponentials / exponentials.sum(axis=0)
    return total / len(inputs)


@pytest.mark.parametrize(
    "source, size",
    [((20, 35), (80, 140)), ((5, 4), (5, 4)), ((9, 9), (65, 3)), ((30, 3), (1100, 7))],
)
@pytest.mark.parametrize("classes", [7, MIN_NUMPY_CLASSES])
def test_one_input(source, size, classes):
    logits = np.random.default_rng(0).normal(size=[classes, *source])
    actual = label_map([[window(logits, size)]]).numpy()
    assert (actual == bilinear(logits[None], size)[0].argmax(axis=0)).mean() > 0.999  # ties


def test_augmented_inputs_are_averaged_after_softmax():
    """Inputs of different sizes; one confident input outweighs two that are less confident."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=[5, *size]) * 5 for size in ((20, 30), (10, 15), (31, 44))]
    actual = label_map([[window(logits, (70, 90))] for logits in inputs]).numpy()
    expected = mean_softmax(inputs, (70, 90)).argmax(axis=0)
    assert (actual == expected).mean() > 0.9999

    sure, unsure = np.array([[[5.0]], [[0.0]]]), np.array([[[0.0]], [[0.5]]])
    assert not label_map([[window(logits, (2, 2))] for logits in (sure, unsure, unsure)]).any()


def test_windows_are_summed():
    """Two windows side by side, so wide that most tiles overlap only one of them."""
    left, right = np.random.default_rng(0).normal(size=[2, 4, 10, 50])
    halves = np.eye(1200)[:, :600], np.eye(1200)[:, 600:]
    row_weights, col_weights = linear_weights(10, 20), linear_weights(50, 600)
    windows = [
        WindowLogits.from_logits(
            paddle.to_tensor(logits, dtype="float32"), row_weights, half @ col_weights
        )
        for logits, half in zip((left, right), halves)
    ]
    expected = [bilinear(logits[None], (20, 600))[0] for logits in (left, right)]
    expected = np.concatenate(expected, axis=2).argmax(axis=0)
    assert (label_map([windows]).numpy() == expected).mean() > 0.999  # ties


@pytest.mark.parametrize("sizes", [[(20, 30)], [(20, 30), (31, 44)]])
def test_probabilities(sizes):
    """One and two augmented inputs, and more than one tile."""
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=[5, *size]) * 3 for size in sizes]
    expected = mean_softmax(inputs, (70, 90))
    windows = [[window(logits, (70, 90))] for logits in inputs]
    actual = probability_map(windows).numpy()
    np.testing.assert_allclose(actual, expected.transpose([1, 2, 0]), atol=1e-5)
    assert (label_map(windows).numpy() == expected.argmax(axis=0)).mean() > 0.999  # ties
