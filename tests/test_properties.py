"""What holds for any size, ratio, seed and number of processes, on examples drawn at random."""

from unittest import mock

import cv2
import numpy as np
import paddle
import pytest
from reference import bilinear

from paddleseg_segformer import CrossEntropyLoss
from paddleseg_segformer.config_check import COMPONENTS
from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine.dataloader import TrainSampler
from paddleseg_segformer.ops import WindowLogits, label_map, linear_weights, resize_bilinear

hypothesis = pytest.importorskip("hypothesis", reason="hypothesis is not installed")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

IGNORED = 255

settings.register_profile("ours", max_examples=40, derandomize=True, deadline=None, database=None)
settings.load_profile("ours")

seeds = st.integers(0, 1 << 30)
sources = st.tuples(st.integers(1, 20), st.integers(1, 20))
targets = st.tuples(st.integers(1, 150), st.integers(1, 150))


@given(sources, targets, st.booleans(), seeds)
def test_resizing_is_bilinear(source, target, align_corners, seed):
    x = np.random.default_rng(seed).normal(size=[2, 3, *source])
    tensor = paddle.to_tensor(x)
    actual = resize_bilinear(tensor, target, align_corners).numpy()
    expected = bilinear(x, target, align_corners)
    np.testing.assert_allclose(actual, expected, atol=1e-10)


@given(st.lists(sources, min_size=1, max_size=3), targets, st.integers(1, 9), seeds)
def test_a_label_is_that_of_the_highest_score(sizes, target, classes, seed):
    """Of one view of the logits, of several of the mean of their softmax."""
    rng = np.random.default_rng(seed)
    views, scores = [], []
    for size in sizes:
        logits = rng.normal(size=[classes, *size]) * rng.choice([0.1, 3, 100])
        full = bilinear(logits[None], target)[0]
        if len(sizes) > 1:
            full = np.exp(full - full.max(axis=0))
            full /= full.sum(axis=0)
        scores.append(full)
        matrices = [linear_weights(s, t) for s, t in zip(size, target)]
        views.append([WindowLogits.from_logits(paddle.to_tensor(logits), *matrices)])
    found = label_map(views).numpy()
    total = sum(scores)
    chosen = np.take_along_axis(total, found[None].astype("int64"), axis=0)[0]
    assert found.shape == target and found.min() >= 0 and found.max() < classes
    np.testing.assert_allclose(chosen, total.max(axis=0), rtol=1e-4, atol=1e-4)


@given(
    source=sources,
    target=targets,
    classes=st.integers(1, 9),
    dtype=st.sampled_from(["float32", "float64"]),
    ignored=st.sampled_from([0.0, 0.3, 0.99, 1.0]),
    weighted=st.booleans(),
    valid_alone=st.booleans(),
    seed=seeds,
)
def test_cross_entropy(source, target, classes, dtype, ignored, weighted, valid_alone, seed):
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=[2, classes, *source]) * 5).astype(dtype)
    labels = rng.integers(0, classes, [2, *target])
    labels[rng.random(labels.shape) < ignored] = IGNORED
    weight = rng.uniform(0.1, 2, classes).astype("float32") if weighted else None
    loss = CrossEntropyLoss(
        None if weight is None else weight.tolist(), IGNORED, avg_non_ignore=valid_alone
    )
    tensor = paddle.to_tensor(logits, stop_gradient=False)
    value = loss(tensor, paddle.to_tensor(labels))
    value.backward()

    valid = labels != IGNORED
    classes_of = np.where(valid, labels, 0)
    full = bilinear(logits.astype("float64"), target)
    full -= full.max(axis=1, keepdims=True)
    picked = np.take_along_axis(full, classes_of[:, None], axis=1)[:, 0]
    losses = np.log(np.exp(full).sum(axis=1)) - picked
    share = valid * (1.0 if weight is None else weight[classes_of].astype("float64"))
    expected = (losses * share).sum() / ((share.sum() if valid_alone else share.size) + 1e-8)
    assert float(value) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    # What is added to all classes of a pixel changes nothing.
    gradient = tensor.grad.numpy()
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-5)


COLORS = np.array([[220, 30, 40], [20, 200, 60], [40, 50, 230], [240, 240, 20], [128, 128, 128]])
sides = st.integers(48, 128)
GEOMETRIC = {
    "ResizeToFit": {"target_size": st.tuples(sides, sides), "ratio_range": st.just((1, 2))},
    "RandomCategoryCrop": {"crop_size": st.tuples(sides, sides)},
    "Padding": {"target_size": st.just((160, 160))},
    "Resize": {"target_size": st.tuples(sides, sides)},
    "ResizeByLong": {"long_size": sides},
    "ResizeByShort": {"short_size": sides},
    "ResizeStepScaling": {},
    "ResizeRangeScaling": {"min_value": st.just(40), "max_value": st.just(120)},
    "RandomHorizontalFlip": {},
    "RandomVerticalFlip": {},
    "RandomPaddingCrop": {"crop_size": st.tuples(sides, sides)},
    "RandomCenterCrop": {},
    "ScalePadding": {"target_size": st.just((96, 80))},
    "RandomRotation": {},
    "RandomScaleAspect": {},
}


@pytest.mark.parametrize("name", GEOMETRIC)
@settings(max_examples=12)
@given(data=st.data(), height=st.integers(24, 100), width=st.integers(24, 100), seed=seeds)
def test_image_and_label_stay_together(name, data, height, width, seed):
    """The image shows each class in its color: so it does afterwards, but for the borders."""
    arguments = data.draw(st.fixed_dictionaries(GEOMETRIC[name]), name)
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, len(COLORS), [height // 12 + 1, width // 12 + 1]).astype("uint8")
    label = blocks.repeat(12, axis=0).repeat(12, axis=1)[:height, :width].copy()
    sample = {
        "img": COLORS[label].astype("uint8"),
        "label": label,
        "gt_fields": ["label"],
        "trans_info": [],
    }
    np.random.seed(seed)
    with mock.patch("random.random", rng.random):
        sample = COMPONENTS[name](**arguments)(sample)
    image, found = np.asarray(sample["img"]).astype(float), sample["label"]
    assert image.shape[:2] == found.shape and image.shape[2] == 3
    assert set(np.unique(found)) <= {*np.unique(label), IGNORED}
    growth = max(found.shape[0] / height, found.shape[1] / width, 1)
    around = np.ones([2 * int(np.ceil(growth)) + 3] * 2, "uint8")
    edge = {"borderType": cv2.BORDER_CONSTANT, "borderValue": IGNORED - 1}  # is no inner part
    inner = cv2.erode(found, around, **edge) == cv2.dilate(found, around, **edge)
    shown = np.abs(image - COLORS[np.minimum(found, len(COLORS) - 1)]).max(axis=2)
    assert shown[inner & (found != IGNORED)].max(initial=0) <= 2


@given(
    size=st.integers(1, 40),
    batch_size=st.integers(1, 9),
    parts=st.integers(1, 3),
    world=st.integers(1, 5),
    steps=st.integers(1, 8),
    done=st.integers(0, 8),
    seed=seeds,
)
def test_each_sample_comes_once_an_epoch(size, batch_size, parts, world, steps, done, seed):
    """For any number of processes, and wherever a run was stopped and resumed."""

    def stream(first, steps, world, batch_size):
        """All processes' samples, in the order of the stream."""
        shares = []
        for rank in range(world):
            with mock.patch.multiple(distributed, rank=lambda r=rank: r, world_size=lambda: world):
                shares.append(list(TrainSampler(size, batch_size, parts, first, steps, seed)))
        assert all(len(share) == steps * parts for share in shares)
        return [
            sample
            for step in range(steps)
            for share in shares
            for batch in share[step * parts : (step + 1) * parts]
            for sample in batch
        ]

    each = batch_size * parts * world
    whole = stream(0, done + steps, world, batch_size)
    assert [number for number, _ in whole] == list(range((done + steps) * each))
    items = [item for _, item in whole]
    for start in range(0, len(items) - size + 1, size):
        assert sorted(items[start : start + size]) == list(range(size))
    assert stream(done * each, steps, world, batch_size) == whole[done * each :]
    # One process with batches as large as theirs together has the same stream.
    assert stream(0, done + steps, 1, batch_size * world) == whole
