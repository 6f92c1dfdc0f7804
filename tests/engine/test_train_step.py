"""One step of training: parts equal the whole, and what is not finite changes nothing."""

import copy

import numpy as np
import paddle
import pytest
from paddleseg.cvlibs import manager
from paddleseg.models import STDC1, PPLiteSeg

from paddleseg_segformer import CrossEntropyLoss, MixVisionTransformer_B0, SegFormer
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep, out_of_memory_hint, seed_all
from paddleseg_segformer.errors import InputError

CLASSES = 5


def stepper(loss, grad_accum_steps=1, fixed_statistics=True):
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
    options = TrainOptions(grad_accum_steps=grad_accum_steps)
    return TrainStep(model, losses, optimizer, options, copy.deepcopy(model))


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


def cut(arrays, parts):
    size = len(arrays["img"]) // parts
    return [{n: a[i * size : (i + 1) * size] for n, a in arrays.items()} for i in range(parts)]


LOSSES = {
    "over all pixels": lambda: CrossEntropyLoss(avg_non_ignore=False),
    "over valid pixels": lambda: CrossEntropyLoss(),
    "weighted": lambda: CrossEntropyLoss(weight=[0.1, 1.0, 2.0, 5.0, 0.5]),
}


@pytest.mark.parametrize("case", LOSSES)
def test_four_batches_of_one_make_the_step_of_one_of_four(case):
    whole, parts = stepper(LOSSES[case]()), stepper(LOSSES[case](), grad_accum_steps=4)
    for step in range(1, 11):
        expected, actual = whole([batch(step)], step), parts(cut(batch(step), 4), step)
        np.testing.assert_allclose(actual.losses, expected.losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actual.norm, expected.norm, rtol=1e-3)


def test_a_part_without_a_valid_pixel_counts_for_nothing():
    arrays = batch(1)
    arrays["label"][1:] = 255
    parts = cut(arrays, 4)
    alone = stepper(CrossEntropyLoss())(parts[:1], 1)
    outcome = stepper(CrossEntropyLoss(), grad_accum_steps=4)(parts, 1)
    np.testing.assert_allclose(outcome.losses, alone.losses, rtol=1e-5)
    np.testing.assert_allclose(outcome.norm, alone.norm, rtol=1e-4)


def states(step):
    return [*step.model.state_dict().values(), *step.ema_model.state_dict().values()]


def scaling(monkeypatch, loss):
    """A stepper with fp16's loss scale, which Paddle has for a GPU alone."""
    step = stepper(loss)
    with monkeypatch.context() as pretence:
        pretence.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
        step.scaler = paddle.amp.GradScaler()
    assert step.scaler.is_enable()
    return step


def test_the_loss_scale_follows_overflows_and_is_resumed(monkeypatch):
    plain, step = stepper(CrossEntropyLoss()), scaling(monkeypatch, CrossEntropyLoss())
    for i in (1, 2):
        expected, actual = plain([batch(i)], i), step([batch(i)], i)
        np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(actual.norm, expected.norm, rtol=1e-4)  # of unscaled gradients
    for value, expected in zip(states(step), states(plain)):
        np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)

    def overflow(*arguments):
        losses = backward(*arguments)
        parameter.grad = paddle.full(parameter.shape, float("inf"))
        return losses

    backward, parameter = step._backward, step.model.parameters()[0]
    before = [value.numpy().copy() for value in step.model.state_dict().values()]
    scale = step.scaler_state()["scale"]
    with monkeypatch.context() as spoilt:
        spoilt.setattr(step, "_backward", overflow)
        outcome = step([batch(3)], 3)
    assert outcome.skipped is None and step.scaler_state()["scale"] == scale / 2
    for value, expected in zip(step.model.state_dict().values(), before):
        np.testing.assert_array_equal(value.numpy(), expected)
    resumed = scaling(monkeypatch, CrossEntropyLoss())
    resumed.set_scaler_state(step.scaler_state())
    assert resumed.scaler_state() == step.scaler_state()
    assert np.isfinite(step([batch(4)], 4).norm)


def test_a_step_that_is_not_finite_changes_nothing():
    step = stepper(CrossEntropyLoss(), fixed_statistics=False)
    step([batch(1)], 1)
    before = [value.numpy().copy() for value in states(step)]
    moments = {n: v.numpy() for n, v in step.optimizer.state_dict().items() if "moment" in n}
    rate = step.optimizer.get_lr()
    arrays = batch(2)
    arrays["img"][3, 0, 5, 5] = float("nan")
    outcome = step([arrays], 2)
    assert "image is not finite" in outcome.skipped and outcome.bad_samples == [3]
    for value, earlier in zip(states(step), before):  # BatchNorm's statistics among them
        np.testing.assert_array_equal(value.numpy(), earlier)
    for name, value in moments.items():
        np.testing.assert_array_equal(step.optimizer.state_dict()[name].numpy(), value)
    assert step.optimizer.get_lr() > rate  # the schedule goes on
    assert step([batch(3)], 3).skipped is None


def test_a_step_that_fails_leaves_nothing_behind():
    class Failing(paddle.nn.Layer):
        def forward(self, logit, label):
            raise MemoryError

    step = stepper(Failing(), fixed_statistics=False)
    before = [value.numpy().copy() for value in states(step)]
    with pytest.raises(MemoryError):
        step([batch(1)], 1)
    for value, earlier in zip(states(step), before):
        np.testing.assert_array_equal(value.numpy(), earlier)


@pytest.mark.parametrize(
    "loss, reason",
    [("FocalLoss", "channel of logit should be 2"), ("KLLoss", "list index out of range")],
)
def test_a_loss_that_is_not_for_this_model_is_told(loss, reason):
    with pytest.raises(InputError, match=f"loss.types: {loss} cannot be .* SegFormer.*{reason}"):
        stepper(manager.LOSSES[loss]())([batch(1)], 1)


def test_a_loss_of_one_s_own_keeps_its_traceback():
    class Broken(paddle.nn.Layer):
        def forward(self, logit, label):
            return logit["seg"]

    with pytest.raises((IndexError, KeyError, TypeError, ValueError)):
        stepper(Broken())([batch(1)], 1)


def test_an_overflow_lowers_the_loss_scale_once(monkeypatch):
    """Not again with the next step, whose gradient is finite though its loss is not."""

    class Loss(paddle.nn.Layer):
        def forward(self, logit, label):
            if self.case == "no finite gradient":
                return paddle.sqrt(logit * 0).mean()
            return logit.mean() + (np.inf if self.case == "no finite loss" else 0.0)

    loss = Loss()
    step = scaling(monkeypatch, loss)
    first, outcomes, scales = step.scaler_state()["scale"], [], []
    for i, loss.case in enumerate(["no finite gradient", "no finite loss", "sound"], 1):
        outcomes.append(step([batch(i)], i))
        scales.append(step.scaler_state()["scale"])
    assert [outcome.skipped for outcome in outcomes] == [None, "a loss is inf", None]
    assert [np.isfinite(outcome.norm) for outcome in outcomes] == [False, True, True]
    assert scales == [first / 2] * 3 and step.scaler_state()["incr_count"] == 1


@pytest.mark.parametrize("grad_accum_steps, bad_samples", [(1, [0, 1, 2, 3]), (2, [2, 3])])
def test_the_images_of_a_loss_that_is_not_finite_are_named(grad_accum_steps, bad_samples):
    class Infinite(paddle.nn.Layer):
        def forward(self, logit, label):
            return logit.mean() / (label != 7).all().astype("float32")

    arrays = batch(1)
    arrays["label"][3, 0, 0] = 7
    outcome = stepper(Infinite(), grad_accum_steps)(cut(arrays, grad_accum_steps), 1)
    assert "loss is" in outcome.skipped and outcome.bad_samples == bad_samples


def test_what_a_step_draws_follows_from_seed_and_iteration():
    def draw(seed, iteration):
        seed_all(seed, iteration)
        return paddle.rand([4]).numpy().tolist() + np.random.rand(2).tolist()

    first = draw(0, 1)
    others = [draw(0, 2), draw(1, 1)]
    assert draw(0, 1) == first and first not in others


def frozen_stepper(model, optimizer, outputs=1, freeze=True):
    """What the trainer makes of ``--freeze_backbone``."""
    for parameter in model.backbone.parameters() if freeze else ():
        parameter.stop_gradient = True
    losses = {"types": [CrossEntropyLoss()] * outputs, "coef": [1.0] * outputs}
    options = TrainOptions(freeze_backbone=freeze)
    return TrainStep(model, losses, optimizer, options, copy.deepcopy(model))


def test_a_head_learns_the_same_whether_or_not_the_backbone_is_frozen():
    """Frozen, paths are never dropped; SGD at rate 1 changes a weight by its gradient."""
    found = []
    for freeze, rate in ((True, 0.5), (False, 0.0)):
        paddle.seed(0)
        backbone = MixVisionTransformer_B0(drop_path_rate=rate)
        model = SegFormer(CLASSES, backbone, embedding_dim=16, dropout=0.0)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
        outcome = frozen_stepper(model, optimizer, freeze=freeze)([batch(1)], 1)
        changes = {name: v.numpy() - before[name] for name, v in model.state_dict().items()}
        found.append((outcome.losses, changes))
    (frozen_losses, frozen), (losses, free) = found
    np.testing.assert_allclose(frozen_losses, losses, rtol=1e-6)
    for name, change in free.items():
        expected = 0 if name.startswith("backbone.") else change
        np.testing.assert_allclose(frozen[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.any(change), name


def test_a_frozen_backbone_with_batchnorm_stays_as_it_is_to_the_last_bit():
    """Of one of PaddleSeg's models, in its average, too; and the optimizer keeps nothing of it."""
    paddle.seed(0)
    model = PPLiteSeg(CLASSES, STDC1())
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    step = frozen_stepper(model, optimizer, outputs=3)
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    assert any(name.startswith("backbone.") and "._mean" in name for name in before)
    for i in (1, 2):
        step([batch(i)], i)
    for of in (step.model, step.ema_model):
        changed = {n for n, v in of.state_dict().items() if (v.numpy() != before[n]).any()}
        assert changed and not any(name.startswith("backbone.") for name in changed)
    head = {p.name for p in model.parameters() if not p.stop_gradient}
    moments = [key for key in optimizer.state_dict() if "moment" in key]
    assert {key.split("_moment")[0] for key in moments} == head


class Recomputing:
    class backbone:  # noqa: N801
        recompute = False


ADVICE = [
    (8, 2, Recomputing, r"--batch_size 4 --grad_accum_steps 4, .*recompute=true, or smaller crops"),
    (5, 1, Recomputing, r"--batch_size 1 --grad_accum_steps 5, "),
    (1, 4, Recomputing, r"try --opts model.backbone.recompute=true, or smaller crops"),
    (1, 1, object, r"try smaller crops"),
]


@pytest.mark.parametrize("images, parts, model, message", ADVICE)
def test_a_full_device_gives_advice_with_numbers(images, parts, model, message):
    shape = [images, 3, 512, 640]
    with pytest.raises(MemoryError, match=message), out_of_memory_hint(shape, parts, model()):
        raise SystemError("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate")
    with pytest.raises(RuntimeError, match="another"), out_of_memory_hint(shape, parts, model()):
        raise RuntimeError("another error")
