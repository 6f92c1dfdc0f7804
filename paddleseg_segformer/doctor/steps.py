"""Single training steps on the device: beside float64 on the CPU, in half precision, and failed."""

from __future__ import annotations

import itertools

import numpy as np
import paddle
import paddle.nn.functional as F

from ..config import build, load_config
from ..engine.optimizer import configure_parameters
from ..engine.options import TrainOptions
from ..engine.train_step import TrainStep, out_of_memory_hint
from .operators import check_gradients, on_cpu, relative_error, within
from .runner import Result

CLASSES, IGNORED = 150, 255
# Bounds of the relative error of a step's loss and gradient. In float32 the rounding errors of some
# 300 operators add up; TF32 rounds the operands of each product to 11 bits instead of 24.
STEP_BOUNDS = {"float32": 1e-4, "TF32": 3e-2}
# Root mean square of the error of each parameter's update by AdamW, over the learning rate: float32
# rounds weights of 1 by 6e-8, 6e-5 of RATE. A weight decay of 0.01 too much is an error of 1e-2.
UPDATE_BOUND, RATE, DECAY = 1e-3, 1e-3, 0.01
# All of these are on Paddle's lists for half precision, or on the step's own.
HALF_LAYERS = (paddle.nn.Linear, paddle.nn.Conv2D)


def recipe(variant, *opts):
    """The paper's config of a variant, without pretrained weights, with config overrides."""
    path = f"configs/segformer_mit-{variant.lower()}_512x512_160k_ade20k.yaml"
    return load_config(path, ["model.backbone.pretrained=null", *opts])


def build_step(variant, precision="fp32"):
    """A ``TrainStep`` of the paper's recipe without dropout, stochastic depth and warm-up."""
    paddle.seed(0)
    opts = ["model.dropout=0.0", "model.backbone.drop_path_rate=0.0"]
    opts += [f"lr_scheduler.learning_rate={RATE}", "lr_scheduler.warmup_iters=0"]
    config = recipe(variant, *opts)
    model, optimizer, losses = build(config, "model", "optimizer", "loss")
    configure_parameters(config, model)
    return TrainStep(model, losses, optimizer, TrainOptions(precision=precision), None)


def random_batch(images, size):
    """``img`` and ``label`` of random values; a tenth of the labels is ignored."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, [images, size, size])
    labels[rng.random(labels.shape) < 0.1] = IGNORED
    image = rng.standard_normal([images, 3, size, size]).astype("float32")
    return {"img": paddle.to_tensor(image), "label": paddle.to_tensor(labels)}


def check_step(context, variant, bound_name, size):
    """Loss, gradient and updated weights of the first step beside float64 on the CPU.

    The reference resizes the logits to full size and uses Paddle's cross-entropy, and computes
    AdamW's update from its formula and the step's own gradient.
    """
    step, batch = build_step(variant), random_batch(2, size)
    before = _arrays(step.model)
    gradients = {}

    def keep(name, gradient):
        gradients[name] = gradient.astype("float64").numpy()

    for name, parameter in _trainable(step.model):
        parameter.register_hook(lambda gradient, name=name: keep(name, gradient))
    result = step([batch], 1)
    after = _arrays(step.model)
    with on_cpu(context):
        loss, expected = _reference(variant, before, batch)
    names = sorted(expected)
    errors = {
        "loss": abs(result.losses[0] / loss - 1),
        "gradient": relative_error(*(_flat(values, names) for values in (gradients, expected))),
    }
    updates = {}
    for name in names:
        rate, expected = _adamw_update(name, before[name], gradients[name])
        updates[name] = float(np.sqrt(np.mean((after[name] - before[name] - expected) ** 2))) / rate
    worst = max(updates, key=updates.get)
    update_error = updates[worst]
    row = within(errors, STEP_BOUNDS[bound_name])
    return Result(
        row.passed and update_error <= UPDATE_BOUND,
        f"{row.measured}, update {update_error:.1e}",
        f"{row.bound}, update ≤ {UPDATE_BOUND:.0e}",
        {**row.details, "update": update_error, "worst_update": worst},
    )


def _reference(variant, weights, batch):
    """Loss and gradients by name, in float64."""
    paddle.set_default_dtype("float64")
    try:
        model = build_step(variant).model
        model.set_state_dict(weights)
        model.train()
        images, labels = (batch[name].numpy() for name in ("img", "label"))
        logits = model(paddle.to_tensor(images, dtype="float64"), resize_logits=False)[0]
        full = F.interpolate(logits, labels.shape[1:], mode="bilinear")
        label, options = paddle.to_tensor(labels), {"axis": 1, "reduction": "sum"}
        loss = F.cross_entropy(full, label, ignore_index=IGNORED, **options) / labels.size
        loss.backward()
        check_gradients(_trainable(model))
        gradients = {name: p.grad.numpy() for name, p in _trainable(model)}
    finally:
        paddle.set_default_dtype("float32")
    return float(loss), gradients


def _adamw_update(name, weight, gradient):
    """Learning rate and first update by AdamW, in which the moments are the gradient's."""
    rate = RATE * (10 if "linear_" in name else 1)
    decay = 0 if "norm" in name and "linear_" not in name else DECAY
    return rate, -rate * (decay * weight + gradient / (np.abs(gradient) + 1e-8))


def _trainable(model):
    return [(name, p) for name, p in model.named_parameters() if not p.stop_gradient]


def _arrays(model):
    return {name: p.astype("float64").numpy() for name, p in model.state_dict().items()}


def _flat(arrays, names):
    return np.concatenate([np.asarray(arrays[name], "float64").ravel() for name in names])


def check_half_layers(context, variant):
    """Each linear layer and convolution has a result in half precision under bf16."""
    step, batch = build_step(variant, "bf16"), random_batch(2, 128)
    dtypes = {}

    def note(name, result):
        result = result[0] if isinstance(result, (list, tuple)) else result
        dtypes[name] = str(result.dtype).rpartition(".")[2]

    for name, layer in step.model.named_sublayers():
        if not layer.sublayers():
            layer.register_forward_post_hook(lambda _, __, result, name=name: note(name, result))
    layers = dict(step.model.named_sublayers())
    step([batch], 1)
    products = [name for name in dtypes if isinstance(layers[name], HALF_LAYERS)]
    half = [name for name, dtype in dtypes.items() if dtype == "bfloat16"]
    count = len(set(products) & set(half))
    measured = f"{count} of {len(products)} linear layers and convolutions"
    details = {"in_half": len(half), "layers": len(dtypes), "dtypes": dtypes}
    return Result(count == len(products), measured, "all", details)


def check_skipped_step(context):
    """A step with a NaN changes no weight, moment and statistic; the next one does."""
    step, batch = build_step("B0"), random_batch(2, 64)
    step([batch], 1)
    before = _state(step)
    logits = step.model.register_forward_post_hook(lambda _, __, outputs: [outputs[0] * np.nan])
    of_loss = step([batch], 2)
    logits.remove()
    bad = {**batch, "img": batch["img"].clone()}
    bad["img"][1, 0, 0, 0] = np.nan
    of_image = step([bad], 3)
    changed = _differences(before, _state(step))
    recovered = step([batch], 4)
    moved = _differences(before, _state(step))
    passed = of_loss.skipped and of_image.skipped and 1 in of_image.bad_samples
    passed = passed and not changed and recovered.skipped is None and moved
    measured = f"{len(changed)} of {len(before)} tensors changed"
    if not (of_loss.skipped and of_image.skipped):
        measured = "not skipped"
    details = {"changed": changed, "skipped": [of_loss.skipped, of_image.skipped]}
    return Result(bool(passed), measured, "none, then one good step", details)


def check_overflow(context):
    """In fp16, a step whose gradient overflows changes nothing and lowers the loss scale.

    Some versions of Paddle lower the scale at the second overflow in a row.
    """
    step, batch = build_step("B0", "fp16"), random_batch(2, 64)
    step([batch], 1)
    before, scale = _state(step), step.scaler_state()["scale"]
    _, parameter = _trainable(step.model)[0]
    parameter.register_hook(lambda gradient: gradient * np.inf)
    step([batch], 2)
    changed = _differences(before, _state(step))
    state = step.scaler_state()
    lowered = state["scale"] < scale or state.get("decr_count", 0) > 0
    measured = f"{len(changed)} tensors changed, scale {scale:.0f} to {state['scale']:.0f}"
    details = {"changed": changed, "scaler": state}
    return Result(lowered and not changed, measured, "none, a lower scale", details)


def check_out_of_memory(context):
    """A step that does not fit into the GPU's memory raises an error that suggests flags."""
    step, batch = build_step("B0"), random_batch(16, 512)
    filled = []
    try:
        for _ in itertools.count():  # 256 MB each
            filled.append(paddle.empty([1 << 26]))
    except (MemoryError, RuntimeError, SystemError):
        pass
    del filled[-1:]
    try:
        with out_of_memory_hint(batch["img"].shape, 1, step.model):
            step([batch], 1)
    except MemoryError as error:
        text = str(error)
    else:
        text = "no error"
    advice = "--batch_size 8 --grad_accum_steps 2"
    return Result(advice in text, text[:60], f"names {advice}", {"text": text})


def _state(step):
    """Weights, statistics and moments by name, arrays."""
    state = {f"model {name}": value for name, value in step.model.state_dict().items()}
    for name, value in step.optimizer.state_dict().items():
        if isinstance(value, paddle.Tensor):
            state[f"optimizer {name}"] = value
    return {name: value.astype("float32").numpy() for name, value in state.items()}


def _differences(before, after):
    return [name for name in before if not np.array_equal(before[name], after[name])]
