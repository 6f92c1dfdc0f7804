"""One optimizer step: gradient accumulation is exact, and non-finite steps change nothing."""

import contextlib
import copy
import random

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddleseg.cvlibs import manager
from paddleseg.models import STDC1, DiceLoss, MixedLoss, OhemCrossEntropyLoss, PPLiteSeg
from reference import TINY, upsample

from paddleseg_segformer import CrossEntropyLoss, MixVisionTransformer, SegFormer
from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep, out_of_memory_hint, seed_all
from paddleseg_segformer.errors import InputError

CLASSES = 5


def tiny(kind=SegFormer, drop_path_rate=0.0, **options):
    """A small model without dropout, always with the same initial weights."""
    paddle.seed(0)
    backbone = MixVisionTransformer(**TINY, drop_path_rate=drop_path_rate)
    model = kind(CLASSES, backbone, embedding_dim=16, dropout=0.0, **options)
    model.train()
    return model


def train_step(loss, grad_accum_steps=1, fixed_statistics=True):
    """TrainStep of ``tiny`` with its EMA."""
    model = tiny()
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
    """Images and labels; the numbers of ignored pixels differ much between images."""
    rng = np.random.default_rng(step)
    labels = rng.integers(0, CLASSES, [size, 64, 64])
    for i, label in enumerate(labels):
        label[: 20 * i] = 255
    images = rng.normal(size=[size, 3, 64, 64])
    return {
        "img": paddle.to_tensor(images.astype("float32")),
        "label": paddle.to_tensor(labels.astype("uint8")),
    }


def split(arrays, count):
    """Split a batch into micro-batches."""
    size = len(arrays["img"]) // count
    return [{n: a[i * size : (i + 1) * size] for n, a in arrays.items()} for i in range(count)]


LOSSES = {
    "over all pixels": lambda: CrossEntropyLoss(avg_non_ignore=False),
    "over valid pixels": lambda: CrossEntropyLoss(),
    "class weights": lambda: CrossEntropyLoss(weight=[0.1, 1.0, 2.0, 5.0, 0.5]),
    "mixed": lambda: MixedLoss([LOSSES["over valid pixels"](), LOSSES["class weights"]()], [1, 2]),
}


@pytest.mark.parametrize("case", LOSSES)
def test_gradient_accumulation_equals_the_whole_batch(case, caplog):
    whole = train_step(LOSSES[case]())
    accumulating = train_step(LOSSES[case](), grad_accum_steps=4)
    assert "not a mean over pixels" not in caplog.text
    for step in range(1, 4):
        expected, actual = whole([batch(step)], step), accumulating(split(batch(step), 4), step)
        np.testing.assert_allclose(actual.losses, expected.losses, rtol=0, atol=1e-5)
        np.testing.assert_allclose(actual.norm, expected.norm, rtol=1e-3)


def test_a_loss_that_is_not_a_mean_over_pixels_gets_a_warning(caplog):
    train_step(CrossEntropyLoss(top_k_percent_pixels=0.5), grad_accum_steps=4)
    assert "averaged over the 4 micro-batches" in caplog.text


def test_micro_batches_without_a_valid_pixel_contribute_nothing():
    arrays = batch(1)
    arrays["label"][1:] = 255
    micro_batches = split(arrays, 4)
    alone = train_step(CrossEntropyLoss())(micro_batches[:1], 1)
    result = train_step(CrossEntropyLoss(), grad_accum_steps=4)(micro_batches, 1)
    np.testing.assert_allclose(result.losses, alone.losses, rtol=1e-5)
    np.testing.assert_allclose(result.norm, alone.norm, rtol=1e-4)


def test_a_step_without_a_valid_pixel_has_no_gradient():
    arrays = batch(1)
    arrays["label"][:] = 255
    result = train_step(CrossEntropyLoss(), grad_accum_steps=4)(split(arrays, 4), 1)
    assert (result.losses, result.norm, result.skipped) == ([0], 0, None)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_only_cross_entropy_gets_logits_at_stride_4(mixed, align_corners, monkeypatch):
    loss = MixedLoss([CrossEntropyLoss()], [1.0]) if mixed else CrossEntropyLoss()
    model = tiny(align_corners=align_corners)
    optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
    losses, sizes = {"types": [loss], "coef": [1.0]}, []
    step = TrainStep(model, losses, optimizer, TrainOptions(), None)

    def compute_losses(outputs, *arguments):
        sizes.append(outputs[0].shape[2:])
        return original(outputs, *arguments)

    original = step._compute_losses
    monkeypatch.setattr(step, "_compute_losses", compute_losses)
    step([batch(1, size=1)], 1)
    assert sizes == [[64, 64] if mixed or align_corners else [16, 16]]


class TwoOutputs(SegFormer):
    """With the scaled logits as those of an auxiliary head."""

    def forward(self, x, **options):
        (logits,) = super().forward(x, **options)
        return [logits, logits / 2]


def label_probabilities(logits, label):
    """The probability of each pixel's label, and whether it is valid."""
    classes = F.one_hot(paddle.where(label == 255, 0, label), CLASSES).transpose([0, 3, 1, 2])
    return (F.softmax(logits, axis=1) * classes).sum(axis=1), (label != 255).astype("float32")


def cross_entropy(logits, label):
    probabilities, valid = label_probabilities(logits, label)
    return -(probabilities.log() * valid).sum() / valid.sum()


def dice(logits, label):
    """The mean of 1 - (2 overlap + 1) / (sum + 1) over images and classes."""
    valid = (label != 255).unsqueeze(1).astype("float32")
    classes = F.one_hot(paddle.where(label == 255, 0, label), CLASSES).transpose([0, 3, 1, 2])
    classes, found = classes * valid, F.softmax(logits, axis=1) * valid
    overlap, total = (classes * found).sum(axis=[2, 3]), (classes + found).sum(axis=[2, 3])
    return (1 - (2 * overlap + 1) / (total + 1)).mean()


# Losses of each output, their factors, and their definitions for one output.
TRAINED_LOSSES = {
    "cross-entropy": ([CrossEntropyLoss()], [2.0], [cross_entropy]),
    "Dice": ([DiceLoss()], [1.0], [dice]),
    # Of all pixels: PaddleSeg 2.8 cannot select them on Paddle 3.
    "OHEM": ([OhemCrossEntropyLoss(min_kept=1 << 20)], [1.0], [cross_entropy]),
    "mixed": (
        [MixedLoss([CrossEntropyLoss(), DiceLoss()], [1.0, 3.0])],
        [0.5],
        [cross_entropy, lambda *inputs: 3 * dice(*inputs)],
    ),
    "of two outputs": (
        [CrossEntropyLoss(), DiceLoss()],
        [1.0, 0.5],
        [cross_entropy, lambda logits, label: dice(logits / 2, label)],
    ),
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("case", TRAINED_LOSSES)
def test_losses_and_gradients_are_those_of_full_size_logits(case, align_corners):
    """SGD at rate 1 subtracts the gradients."""
    types, factors, definitions = TRAINED_LOSSES[case]
    kind = TwoOutputs if len(types) == 2 else SegFormer
    model = tiny(kind, align_corners=align_corners)
    arrays = batch(1, size=2)
    reference = copy.deepcopy(model)
    logits = reference.decode(reference.backbone(arrays["img"]))
    logits = upsample(logits, [64, 64], align_corners)
    expected = [f(logits, arrays["label"].astype("int64")) for f in definitions]
    factors = factors * (len(expected) // len(factors))
    expected = [factor * loss for factor, loss in zip(factors, expected)]
    sum(expected).backward()

    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
    losses = {"types": types, "coef": factors[: len(types)]}
    result = TrainStep(model, losses, optimizer, TrainOptions(), None)([arrays], 1)
    np.testing.assert_allclose(result.losses, [float(loss) for loss in expected], rtol=1e-4)
    squares, parameters = 0, dict(model.named_parameters())
    for name, parameter in reference.named_parameters():
        if not parameter.stop_gradient:
            gradient, change = parameter.grad.numpy(), (before[name] - parameters[name]).numpy()
            squares += (gradient.astype("float64") ** 2).sum()
            np.testing.assert_allclose(change, gradient, rtol=1e-2, atol=1e-5, err_msg=name)
    assert result.norm == pytest.approx(squares**0.5, rel=1e-4)


def test_ema():
    """With PaddleSeg's decay, which begins at 1 / 2."""
    step = train_step(CrossEntropyLoss(), fixed_statistics=False)
    expected = {name: value.numpy() for name, value in step.model.state_dict().items()}
    for i in (1, 2, 3):
        step([batch(i)], i)
        for name, value in step.model.state_dict().items():
            expected[name] = (i * expected[name] + value.numpy()) / (i + 1)
    for name, value in step.ema_model.state_dict().items():
        np.testing.assert_allclose(value.numpy(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision, dtype", [("fp16", "float16"), ("bf16", "bfloat16")])
def test_precision(precision, dtype, monkeypatch):
    """The type that a step on a GPU asks Paddle for."""
    casts = []

    @contextlib.contextmanager
    def auto_cast(**options):
        casts.append(options)
        yield

    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    options, model = TrainOptions(precision=precision, num_workers=0), tiny()
    optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
    losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
    TrainStep(model, losses, optimizer, options, None)([batch(1, size=1)], 1)
    white_list = {"depthwise_conv2d"}
    assert casts[0] == {
        "enable": True,
        "level": "O1",
        "dtype": dtype,
        "custom_white_list": white_list,
    }


def test_losses_of_the_model_get_the_scale_too(monkeypatch):
    """A model may compute its losses itself, like PaddleSeg's MaskFormer."""

    def loss_computation(model, outputs, losses, data):
        return [losses["types"][0](outputs[0], data["label"])]

    monkeypatch.setattr(SegFormer, "loss_computation", loss_computation, raising=False)
    expected = train_step(CrossEntropyLoss())([batch(1)], 1)
    actual = train_step(CrossEntropyLoss(), grad_accum_steps=4)(split(batch(1), 4), 1)
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=0, atol=1e-5)
    np.testing.assert_allclose(actual.norm, expected.norm, rtol=1e-3)


def states(step):
    return [*step.model.state_dict().values(), *step.ema_model.state_dict().values()]


def with_loss_scaling(monkeypatch, loss):
    """TrainStep with dynamic loss scaling, which Paddle enables only on a GPU."""
    step = train_step(loss)
    with monkeypatch.context() as patch:
        patch.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
        step.scaler = paddle.amp.GradScaler()
    assert step.scaler.is_enable()
    return step


def test_the_loss_scale_follows_overflows_and_is_resumed(monkeypatch):
    plain, step = train_step(CrossEntropyLoss()), with_loss_scaling(monkeypatch, CrossEntropyLoss())
    for i in (1, 2):
        expected, actual = plain([batch(i)], i), step([batch(i)], i)
        np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-5)
        np.testing.assert_allclose(
            actual.norm, expected.norm, rtol=1e-4
        )  # of the unscaled gradients
    for value, expected in zip(states(step), states(plain)):
        np.testing.assert_allclose(value.numpy(), expected.numpy(), rtol=1e-4, atol=1e-6)

    def overflow(*arguments):
        losses = backward(*arguments)
        parameter.grad = paddle.full(parameter.shape, float("inf"))
        return losses

    backward, parameter = step._backward, step.model.parameters()[0]
    for layer in step.model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._use_global_stats = False  # the forward pass changes its statistics
    before = [value.numpy().copy() for value in states(step)]
    scale = step.scaler_state()["scale"]
    with monkeypatch.context() as patch:
        patch.setattr(step, "_backward", overflow)
        result = step([batch(3)], 3)
    assert result.skipped is None and step.scaler_state()["scale"] == scale / 2
    for value, expected in zip(states(step), before):
        np.testing.assert_array_equal(value.numpy(), expected)
    resumed = with_loss_scaling(monkeypatch, CrossEntropyLoss())
    resumed.set_scaler_state(step.scaler_state())
    assert resumed.scaler_state() == step.scaler_state()
    assert np.isfinite(step([batch(4)], 4).norm)


def test_a_non_finite_step_changes_nothing():
    step = train_step(CrossEntropyLoss(), fixed_statistics=False)
    step([batch(1)], 1)
    before = [value.numpy().copy() for value in states(step)]
    moments = {n: v.numpy() for n, v in step.optimizer.state_dict().items() if "moment" in n}
    rate = step.optimizer.get_lr()
    arrays = batch(2)
    arrays["img"][3, 0, 5, 5] = float("nan")
    result = step([arrays], 2, [[3]])
    assert "image is not finite" in result.skipped and result.bad_samples == [3]
    for value, earlier in zip(states(step), before):  # BatchNorm's statistics among them
        np.testing.assert_array_equal(value.numpy(), earlier)
    for name, value in moments.items():
        np.testing.assert_array_equal(step.optimizer.state_dict()[name].numpy(), value)
    assert step.optimizer.get_lr() > rate  # the schedule advances
    assert step([batch(3)], 3).skipped is None


def test_the_branches_for_gpus_do_the_same_steps(monkeypatch):
    """Up to the order of sums. Without AdamW, which enlarges the rounding of tiny gradients."""
    expected, actual = (train_step(CrossEntropyLoss(), fixed_statistics=False) for _ in range(2))
    for step in (expected, actual):
        step.optimizer = paddle.optimizer.SGD(0.1, parameters=step.model.parameters())
    for i in (1, 2, 3):
        on_cpu = expected([batch(i)], i)
        with monkeypatch.context() as patch:
            patch.setattr(paddle.base.core.Place, "is_cpu_place", lambda place: False)
            on_gpu = actual([batch(i)], i)
        np.testing.assert_allclose(on_gpu.losses, on_cpu.losses, rtol=1e-5)
        assert on_gpu.norm == pytest.approx(on_cpu.norm, rel=1e-4)
    for value, other in zip(states(actual), states(expected)):
        np.testing.assert_allclose(value.numpy(), other.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_losses_and_norm_are_exact(dtype):
    """Of any float type, also beside a norm of another one."""

    class Loss(paddle.nn.Layer):
        def forward(self, logit, label):
            return (logit.mean() * 0 + 1 / 3).astype(dtype) * 3

    result = train_step(Loss())([batch(1)], 1)
    assert result.losses == [float((paddle.full([], 1 / 3).astype(dtype) * 3).astype("float64"))]
    assert result.norm == 0


def test_a_failing_step_changes_nothing():
    class Failing(paddle.nn.Layer):
        def forward(self, logit, label):
            raise MemoryError

    step = train_step(Failing(), fixed_statistics=False)
    before = [value.numpy().copy() for value in states(step)]
    with pytest.raises(MemoryError):
        step([batch(1)], 1)
    for value, earlier in zip(states(step), before):
        np.testing.assert_array_equal(value.numpy(), earlier)


@pytest.mark.parametrize(
    "loss, reason",
    [("FocalLoss", "channel of logit should be 2"), ("KLLoss", "list index out of range")],
)
def test_a_loss_that_does_not_fit_the_model_is_an_input_error(loss, reason):
    with pytest.raises(InputError, match=f"loss.types: {loss} cannot be .* SegFormer.*{reason}"):
        train_step(manager.LOSSES[loss]())([batch(1)], 1)


def test_a_users_loss_keeps_its_traceback():
    class Broken(paddle.nn.Layer):
        def forward(self, logit, label):
            return logit["seg"]

    with pytest.raises((IndexError, KeyError, TypeError, ValueError)):
        train_step(Broken())([batch(1)], 1)


def test_a_model_that_does_not_fit_its_backbone_is_an_input_error():
    step = train_step(CrossEntropyLoss())
    step.model = step.parallel_model = PPLiteSeg(CLASSES, STDC1())
    step.model.backbone.feat_channels = [1, 2]
    step.model.backbone.forward = lambda x: [x] * 5
    step.forward_options = {}
    with pytest.raises(InputError, match=r"model: PPLiteSeg .* 1, 2 channels; check"):
        step([batch(1)], 1)


def test_an_overflow_lowers_the_loss_scale_once(monkeypatch):
    """Not again in the next step, whose loss is not finite but whose gradient is."""

    class Loss(paddle.nn.Layer):
        def forward(self, logit, label):
            if self.case == "no finite gradient":
                return paddle.sqrt(logit * 0).mean()
            return logit.mean() + (np.inf if self.case == "no finite loss" else 0.0)

    loss = Loss()
    step = with_loss_scaling(monkeypatch, loss)
    first, results, scales = step.scaler_state()["scale"], [], []
    for i, loss.case in enumerate(["no finite gradient", "no finite loss", "finite"], 1):
        results.append(step([batch(i)], i))
        scales.append(step.scaler_state()["scale"])
    assert [result.skipped for result in results] == [None, "a loss is inf", None]
    assert [np.isfinite(result.norm) for result in results] == [False, True, True]
    assert scales == [first / 2] * 3 and step.scaler_state()["incr_count"] == 1


@pytest.mark.parametrize("grad_accum_steps, bad_samples", [(1, [0, 1, 2, 3]), (2, [2, 3])])
def test_samples_of_a_non_finite_loss_are_reported(grad_accum_steps, bad_samples):
    class Infinite(paddle.nn.Layer):
        def forward(self, logit, label):
            return logit.mean() / (label != 7).all().astype("float32")

    arrays = batch(1)
    arrays["label"][3, 0, 0] = 7
    result = train_step(Infinite(), grad_accum_steps)(split(arrays, grad_accum_steps), 1)
    assert "loss is" in result.skipped and result.bad_samples == bad_samples


def test_random_numbers_depend_on_seed_iteration_and_process_only(monkeypatch):
    def draw(seed, iteration, rank=0):
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        seed_all(seed, iteration)
        return paddle.rand([4]).tolist(), np.random.rand(2).tolist(), random.random()

    first = draw(0, 1)
    assert draw(0, 1) == first
    for other in (draw(0, 2), draw(1, 1), draw(0, 1, rank=1)):
        assert all(a != b for a, b in zip(first, other))


def frozen_train_step(model, optimizer, outputs=1, freeze=True):
    """As the trainer builds it with ``--freeze_backbone``."""
    for parameter in model.backbone.parameters() if freeze else ():
        parameter.stop_gradient = True
    losses = {"types": [CrossEntropyLoss()] * outputs, "coef": [1.0] * outputs}
    options = TrainOptions(freeze_backbone=freeze)
    return TrainStep(model, losses, optimizer, options, copy.deepcopy(model))


def test_a_frozen_backbone_does_not_change_the_gradients_of_the_head():
    """A frozen backbone has no stochastic depth; SGD at rate 1 subtracts the gradients."""
    results = []
    for freeze, rate in ((True, 0.5), (False, 0.0)):
        model = tiny(drop_path_rate=rate)
        before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
        optimizer = paddle.optimizer.SGD(1.0, parameters=model.parameters())
        result = frozen_train_step(model, optimizer, freeze=freeze)([batch(1)], 1)
        changes = {name: v.numpy() - before[name] for name, v in model.state_dict().items()}
        results.append((result.losses, changes))
    (frozen_losses, frozen), (losses, free) = results
    np.testing.assert_allclose(frozen_losses, losses, rtol=1e-6)
    for name, change in free.items():
        expected = 0 if name.startswith("backbone.") else change
        np.testing.assert_allclose(frozen[name], expected, rtol=1e-4, atol=1e-6, err_msg=name)
        assert np.any(change), name


def test_a_frozen_backbone_with_batch_norm_does_not_change():
    """In a model of PaddleSeg and its EMA; the optimizer has no state for it."""
    paddle.seed(0)
    model = PPLiteSeg(CLASSES, STDC1())
    optimizer = paddle.optimizer.AdamW(1e-3, parameters=model.parameters())
    step = frozen_train_step(model, optimizer, outputs=3)
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    assert any(name.startswith("backbone.") and "._mean" in name for name in before)
    for i in (1, 2):
        step([batch(i)], i)
    for model in (step.model, step.ema_model):
        changed = {n for n, v in model.state_dict().items() if (v.numpy() != before[n]).any()}
        assert changed and not any(name.startswith("backbone.") for name in changed)
    head = {p.name for p in step.model.parameters() if not p.stop_gradient}
    moments = [key for key in optimizer.state_dict() if "moment" in key]
    assert {key.split("_moment")[0] for key in moments} == head


class Recomputing:
    class backbone:  # noqa: N801
        recompute = False


HINTS = [
    (8, 2, Recomputing, r"--batch_size 4 --grad_accum_steps 4, .*recompute=true, or smaller crops"),
    (5, 1, Recomputing, r"--batch_size 1 --grad_accum_steps 5, "),
    (1, 4, Recomputing, r"try --opts model.backbone.recompute=true, or smaller crops"),
    (1, 1, object, r"try smaller crops"),
]


@pytest.mark.parametrize("images, count, model, message", HINTS)
def test_out_of_memory_errors_suggest_flags(images, count, model, message):
    shape = [images, 3, 512, 640]
    with pytest.raises(MemoryError, match=message), out_of_memory_hint(shape, count, model()):
        raise SystemError("ResourceExhaustedError: Out of memory error on GPU 0. Cannot allocate")
    with pytest.raises(MemoryError, match=message), out_of_memory_hint(shape, count, model()):
        raise OSError("(External) CUDA error(2), out of memory.")  # cuDNN and cuBLAS, for workspace
    with pytest.raises(RuntimeError, match="another"), out_of_memory_hint(shape, count, model()):
        raise RuntimeError("another error")
