"""Upsampled cross-entropy against a resize and the definition of cross-entropy."""

import numpy as np
import paddle
import pytest
from reference import bilinear

from paddleseg_segformer.ops import cross_entropy, upsampled_cross_entropy
from paddleseg_segformer.ops.cross_entropy import _by_operators, _on_cpu

# Sizes of logits and labels: several tiles, less than one, odd ratios, downsampled, equal.
SIZES = [
    ((20, 35), (80, 140)),
    ((3, 4), (12, 16)),
    ((7, 5), (65, 131)),
    ((9, 8), (4, 3)),
    ((6, 70),) * 2,
]


def example(source, target, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=[2, 5, *source]) * 4
    labels = rng.integers(0, 5, [2, *target])
    weights = rng.random([2, *target]) * rng.integers(0, 2, [2, *target])
    return logits, labels, weights


def definition(logits, labels, weights):
    """The sum of weight * (log-sum-exp - logit of the label) over the resized logits."""
    full = bilinear(logits, labels.shape[1:])
    picked = np.take_along_axis(full, labels[:, None], axis=1)[:, 0]
    return (weights * (np.log(np.exp(full).sum(axis=1)) - picked)).sum()


def run(example, dtype="float64"):
    logits, labels, weights = (paddle.to_tensor(array) for array in example)
    logits = logits.astype(dtype)
    logits.stop_gradient = False
    loss = upsampled_cross_entropy(logits, labels, weights)
    loss.backward()
    return loss, logits.grad


@pytest.mark.parametrize("source, target", SIZES)
def test_value_and_gradient(source, target):
    """The gradient against central differences of the definition, along random directions."""
    logits, labels, weights = example(source, target)
    loss, gradient = run((logits, labels, weights))
    assert float(loss) == pytest.approx(definition(logits, labels, weights), rel=1e-12)
    rng = np.random.default_rng(1)
    for _ in range(3):
        direction = rng.normal(size=logits.shape)
        ahead = definition(logits + 1e-5 * direction, labels, weights)
        behind = definition(logits - 1e-5 * direction, labels, weights)
        slope = (ahead - behind) / 2e-5
        assert (gradient.numpy() * direction).sum() == pytest.approx(slope, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("source, target", SIZES)
def test_float32_differs_only_by_rounding(source, target):
    inputs = example(source, target)
    loss, gradient = run(inputs, "float32")
    exact_loss, exact_gradient = run(inputs)
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-5)
    largest = float(exact_gradient.abs().max())
    assert float((gradient.astype("float64") - exact_gradient).abs().max()) < 1e-5 * largest


def test_half_precision_is_computed_in_float32():
    """The summed loss is beyond float16's range; the gradient has the dtype of the logits."""
    inputs = example((20, 35), (80, 140))
    inputs[2][:] = 10
    loss, gradient = run(inputs, "float16")
    # Paddle's own conversion, because 2.6 truncates.
    half = paddle.to_tensor(inputs[0]).astype("float16").astype("float64")
    exact_loss, _ = run((half, *inputs[1:]))
    assert float(loss) > np.finfo("float16").max
    assert float(loss) == pytest.approx(float(exact_loss), rel=1e-5)
    assert gradient.dtype == paddle.float16


@pytest.mark.parametrize("images", [0.5, 1, 2, 3, 9])
def test_groups_of_images_on_other_devices(images, monkeypatch):
    """The last group may be smaller; a group has at least one image, and no more than allowed."""
    inputs = [
        np.concatenate([array, array[::-1] + 0, array[:1]]) for array in example((3, 4), (12, 16))
    ]
    sizes, resize = [], cross_entropy.resize_bilinear

    def record(maps, size):
        sizes.append(len(maps))
        return resize(maps, size)

    monkeypatch.setattr(cross_entropy, "resize_bilinear", record)
    monkeypatch.setattr(cross_entropy, "GROUP_SIZE", int(images * 5 * 12 * 16))
    inputs = [paddle.to_tensor(array) for array in inputs]
    for actual, expected in zip(_by_operators(*inputs), _on_cpu(*inputs)):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-12, atol=1e-12)
    assert sum(sizes) == 5 and max(sizes) == min(5, max(1, int(images)))


@pytest.mark.parametrize("source, target", SIZES)
def test_other_devices_compute_the_same(source, target):
    logits, labels, weights = (paddle.to_tensor(array) for array in example(source, target))
    for actual, expected in zip(
        _by_operators(logits, labels, weights), _on_cpu(logits, labels, weights)
    ):
        np.testing.assert_allclose(actual.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.cpu_branch("on a CPU, though not on a GPU, the operator limits a pixel's loss to 64")
def test_confident_neighbors_of_different_classes_do_not_underflow():
    logits = np.zeros([1, 3, 1, 2])
    logits[0, :2] = [[[0, -500]], [[-500, 0]]]  # left and right: confident, of different classes
    labels, weights = np.ones([1, 4, 8], "int64"), np.ones([1, 4, 8])
    logits[0, 2] = -900
    loss, gradient = run((logits, labels, weights), "float32")
    assert float(loss) == pytest.approx(definition(logits, labels, weights), rel=1e-6)
    assert np.isfinite(gradient.numpy()).all()


def test_upstream_gradient():
    logits, labels, weights = example((3, 4), (12, 16))
    _, gradient = run((logits, labels, weights))
    leaf = paddle.to_tensor(logits, stop_gradient=False)
    loss = upsampled_cross_entropy(leaf, paddle.to_tensor(labels), paddle.to_tensor(weights))
    (loss * 3 - 1).backward()
    np.testing.assert_allclose(leaf.grad.numpy(), 3 * gradient.numpy(), rtol=1e-12)


@pytest.mark.cpu_branch("on a GPU the operator checks labels, and ends the process")
@pytest.mark.parametrize("wrong", [-1, 5])
def test_labels_that_are_not_classes_raise(wrong):
    logits, labels, weights = example((3, 4), (12, 16))
    labels[1, 2, 3] = wrong
    with pytest.raises(ValueError, match=rf"label {wrong} is not a class \(0 to 4\)"):
        run((logits, labels, weights))


def test_different_numbers_of_label_maps_and_images_raise():
    logits, labels, weights = example((3, 4), (12, 16))
    with pytest.raises(ValueError, match="1 label maps for 2 images"):
        run((logits, labels[:1], weights[:1]))
