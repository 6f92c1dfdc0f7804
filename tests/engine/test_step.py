"""One step of training: parts equal the whole, and what is not finite changes nothing."""

import copy

import numpy as np
import paddle
import pytest

from paddleseg_segformer import CrossEntropyLoss, MixVisionTransformer_B0, SegFormer
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.step import Stepper, memory_advice, seed_generators

CLASSES = 5


def stepper(loss, accumulate=1, fixed_statistics=True):
    """A stepper of a small model, always with the same weights, that drops nothing."""
    paddle.seed(0)
    backbone = MixVisionTransformer_B0(drop_path_rate=0.0)
    model = SegFormer(CLASSES, backbone, embedding_dim=16, dropout=0.0)
    model.train()
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._use_global_stats = fixed_statistics
    optimizer = paddle.optimizer.AdamW(
        paddle.optimizer.lr.LinearWarmup(1e-3, 5, 1e-4, 1e-3), parameters=model.parameters()
    )
    losses = {"types": [loss], "coef": [1.0]}
    options = TrainOptions(accumulate=accumulate)
    return Stepper(model, losses, optimizer, options, copy.deepcopy(model))


def batch(step, size=4):
    """Images and labels; the share of ignored pixels differs much from image to image."""
    random = np.random.default_rng(step)
    labels = random.integers(0, CLASSES, [size, 64, 64])
    for i, label in enumerate(labels):
        label[: 20 * i] = 255
    images = random.normal(size=[size, 3, 64, 64])
    return {
        "img": paddle.to_tensor(images.astype("float32")),
        "label": paddle.to_tensor(labels.astype("uint8")),
    }


LOSSES = {
    "over all pixels": lambda: CrossEntropyLoss(avg_non_ignore=False),
    "over valid pixels": lambda: CrossEntropyLoss(),
    "weighted": lambda: CrossEntropyLoss(weight=[0.1, 1.0, 2.0, 5.0, 0.5]),
}


@pytest.mark.parametrize("case", LOSSES)
def test_four_batches_of_one_make_the_step_of_one_of_four(case):
    whole, parts = stepper(LOSSES[case]()), stepper(LOSSES[case](), accumulate=4)
    for step in range(1, 11):
        expected, actual = (s(batch(step), step) for s in (whole, parts))
        np.testing.assert_allclose(actual.losses, expected.losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actual.norm, expected.norm, rtol=1e-3)


def test_a_part_without_a_valid_pixel_counts_for_nothing():
    arrays = batch(1)
    arrays["label"][1:] = 255
    alone = stepper(CrossEntropyLoss())({name: a[:1] for name, a in arrays.items()}, 1)
    outcome = stepper(CrossEntropyLoss(), accumulate=4)(arrays, 1)
    np.testing.assert_allclose(outcome.losses, alone.losses, rtol=1e-5)
    np.testing.assert_allclose(outcome.norm, alone.norm, rtol=1e-4)


def states(step):
    return [*step.model.state_dict().values(), *step.ema_model.state_dict().values()]


def test_a_step_that_is_not_finite_changes_nothing():
    step = stepper(CrossEntropyLoss(), fixed_statistics=False)
    step(batch(1), 1)
    before = [value.numpy().copy() for value in states(step)]
    moments = {n: v.numpy() for n, v in step.optimizer.state_dict().items() if "moment" in n}
    rate = step.optimizer.get_lr()
    arrays = batch(2)
    arrays["img"][3, 0, 5, 5] = float("nan")
    outcome = step(arrays, 2)
    assert "is nan" in outcome.skipped and outcome.culprits == [3]
    for value, earlier in zip(states(step), before):  # BatchNorm's statistics among them
        np.testing.assert_array_equal(value.numpy(), earlier)
    for name, value in moments.items():
        np.testing.assert_array_equal(step.optimizer.state_dict()[name].numpy(), value)
    assert step.optimizer.get_lr() > rate  # the schedule goes on
    assert step(batch(3), 3).skipped is None


@pytest.mark.parametrize("accumulate, culprits", [(1, [0, 1, 2, 3]), (2, [2, 3])])
def test_the_images_of_a_loss_that_is_not_finite_are_named(accumulate, culprits):
    class Infinite(paddle.nn.Layer):
        def forward(self, logit, label):
            return logit.mean() / (label != 7).all().astype("float32")

    arrays = batch(1)
    arrays["label"][3, 0, 0] = 7
    outcome = stepper(Infinite(), accumulate)(arrays, 1)
    assert "loss is" in outcome.skipped and outcome.culprits == culprits


def test_what_a_step_draws_follows_from_seed_and_iteration():
    def draw(seed, iteration):
        seed_generators(seed, iteration)
        return paddle.rand([4]).numpy().tolist() + np.random.rand(2).tolist()

    first = draw(0, 1)
    others = [draw(0, 2), draw(1, 1)]
    assert draw(0, 1) == first and first not in others


def test_a_full_device_gives_advice_with_numbers():
    message = r"8 images of 640x512 .*--batch_size 4 --accumulate 4"
    with pytest.raises(MemoryError, match=message), memory_advice([16, 3, 512, 640], 2):
        raise SystemError("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate")
    with pytest.raises(RuntimeError, match="another"), memory_advice([16, 3, 512, 640], 2):
        raise RuntimeError("another error")
