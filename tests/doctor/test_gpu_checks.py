"""Checks that need a GPU, with the calls of Paddle that need one replaced."""

import json
import subprocess
from types import SimpleNamespace

import paddle
import paddle.nn.functional as F
import pytest

from paddleseg_segformer.doctor import Context, machine, operators, runs, steps
from paddleseg_segformer.engine import options
from paddleseg_segformer.engine.train_step import TrainStep
from paddleseg_segformer.ops import attention

GPU = Context("gpu:0", 2, None)


@pytest.fixture
def cuda(monkeypatch):
    properties = SimpleNamespace(name="A GPU", total_memory=int(8e10), major=9, minor=0)
    for name, value in (
        ("get_device_properties", properties),
        ("get_device_capability", (9, 0)),
        ("max_memory_allocated", int(5e9)),
    ):
        monkeypatch.setattr(paddle.device.cuda, name, lambda value=value: value)


def test_device_and_driver(cuda, monkeypatch):
    assert machine.check_device(GPU).measured == "2 x A GPU, 80 GB, 9.0"
    output = SimpleNamespace(stdout="570.1\n570.1\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: output)
    assert machine.check_driver(GPU).measured.startswith("driver 570.1, CUDA ")

    def missing(*_, **__):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", missing)
    assert machine.check_driver(GPU).measured.startswith("driver unknown, CUDA ")


def test_tf32(cuda, monkeypatch):
    monkeypatch.setattr(paddle.base.core, "get_cublas_switch", lambda: True, raising=False)
    monkeypatch.setattr(paddle.base.core, "get_cudnn_switch", lambda: False, raising=False)
    assert machine.check_tf32(GPU).measured == "matrix products on, convolutions off"
    monkeypatch.delattr(paddle.base.core, "get_cudnn_switch")
    assert machine.check_tf32(GPU).measured == "matrix products on, convolutions unknown"
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert machine.check_tf32(GPU).measured == "matrix products off, convolutions off"


@pytest.fixture
def in_float32(monkeypatch):
    build_step = steps.build_step
    monkeypatch.setattr(steps, "build_step", lambda variant, *_: build_step(variant))


@pytest.mark.integration
def test_layers_in_float32_fail(in_float32):
    result = steps.check_half_layers(GPU, "B0")
    assert not result.passed and result.details["in_half"] == 0
    assert {"float32"} == set(result.details["dtypes"].values())
    assert result.measured.startswith("0 of ") and result.bound == "all"


@pytest.mark.parametrize("others, passes", [("bfloat16", True), ("float32", False)])
def test_each_layer_is_in_half(others, passes, monkeypatch):
    """One of eight layers is of another dtype; LayerNorm may be."""

    class Layer(paddle.nn.Linear):
        dtype = "bfloat16"

        def forward(self, x):
            return x.astype(self.dtype)

    model = paddle.nn.Sequential(*(Layer(2, 2) for _ in range(8)), paddle.nn.LayerNorm(2))
    model[3].dtype = others

    def step(*_):
        for layer in model:
            layer(paddle.ones([1, 2]))

    step.model = model
    monkeypatch.setattr(steps, "build_step", lambda *_: step)
    result = steps.check_half_layers(GPU, "B0")
    assert result.passed == passes and result.details["layers"] == 9
    assert result.measured == f"{7 + passes} of 8 linear layers and convolutions"


def flash_attention(q, k, v, **_):
    with paddle.profiler.RecordEvent("flash_attn kernel launch"):
        return q


@pytest.mark.parametrize(
    "replacement, capability, passes",
    [
        (F.scaled_dot_product_attention, (9, 0), False),  # on a CPU by matrix products
        (flash_attention, (9, 0), True),
        (flash_attention, (7, 5), True),  # not called
    ],
)
def test_attention_kernel(replacement, capability, passes, monkeypatch, tmp_path):
    for module in (paddle.device.cuda, attention):
        monkeypatch.setattr(module, "get_device_capability", lambda: capability)
    monkeypatch.setattr(attention, "FUSED_DTYPES", (paddle.float32,))
    monkeypatch.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
    monkeypatch.setattr(F, "scaled_dot_product_attention", replacement)
    context = GPU._replace(folder=tmp_path)
    result = operators.check_attention_kernel(context, "float32")
    assert result.passed == passes, result
    assert ("matmul" in result.measured) == (
        replacement is not flash_attention or capability < (8,)
    )
    assert result.bound == ("flash_attn" if capability > (8,) else "not flash_attn")


@pytest.mark.integration
@pytest.mark.parametrize(
    "error, passes",
    [("ResourceExhaustedError: Out of memory error on GPU 0.", True), (None, False)],
)
def test_out_of_memory(error, passes, in_float32, monkeypatch):
    free = iter([paddle.zeros([1])] * 3)

    def empty(shape):
        try:
            return next(free)
        except StopIteration:
            raise MemoryError("Out of memory") from None

    def step(*_):
        if error:
            raise RuntimeError(error)

    monkeypatch.setattr(paddle, "empty", empty)
    monkeypatch.setattr(TrainStep, "__call__", step)
    assert steps.check_out_of_memory(GPU).passed == passes


@pytest.fixture
def loss_scaling(monkeypatch):
    """Loss scaling as on a GPU, and no casts."""
    new_scaler, auto_cast = paddle.amp.GradScaler, paddle.amp.auto_cast

    def scaler(**arguments):
        with monkeypatch.context() as patch:
            patch.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
            return new_scaler(**arguments)

    state = paddle.amp.grad_scaler.amp_global_state()
    monkeypatch.setattr(state, "amp_dtype", "float16")  # without it, scalers disable themselves
    monkeypatch.setattr(options, "paddle", SimpleNamespace(get_device=lambda: "gpu:0"))
    monkeypatch.setattr(paddle.amp, "GradScaler", scaler)
    monkeypatch.setattr(paddle.amp, "auto_cast", lambda **_: auto_cast(enable=False))
    return new_scaler


@pytest.mark.integration
def test_overflow(loss_scaling, monkeypatch):
    result = steps.check_overflow(GPU)
    assert result.passed, result
    monkeypatch.setattr(loss_scaling, "step", lambda self, optimizer: optimizer.step())
    assert not steps.check_overflow(GPU).passed


def write(folder, lines):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(
        json.dumps({"kind": "train", "iteration": 1, "lr": {}, **line}) + "\n" for line in lines
    )
    (folder / "train.jsonl").write_text(text)


@pytest.mark.parametrize("reader, passes", [(0.001, True), (0.08, False)])
def test_speed(reader, passes, cuda, monkeypatch, tmp_path):
    def train(config, save_dir, **options):
        assert (config.batch_size, config.iters, options["precision"]) == (16, 60, "bf16")
        line = {"loss": 1.0, "ips": 160.0, "reader_cost": reader, "batch_cost": 0.1}
        write(tmp_path / "speed_B2_16_bf16", [line])

    monkeypatch.setattr(runs, "draw", lambda *_: tmp_path)
    monkeypatch.setattr(runs, "train", train)
    result = runs.check_speed(GPU._replace(folder=tmp_path), "B2", 16, "bf16")
    assert result.passed == passes
    assert result.measured == f"160.00 images/s, 5.0 GB, reader {reader / 0.1:.0%}, 160k in 4 h"


@pytest.mark.parametrize("second, passes", [(2.0001, True), (2.01, False)])
def test_two_gpus(second, passes, monkeypatch, tmp_path):
    commands = []

    def start(command, **_):
        commands.append(command)
        folder = tmp_path / f"gpus_{len(commands)}"
        write(folder, [{"loss": 3.0}, {"loss": 2.0 if len(commands) == 1 else second}])

    monkeypatch.setattr(runs, "draw", lambda *_: tmp_path)
    monkeypatch.setattr(subprocess, "run", start)
    assert runs.check_two_gpus(GPU._replace(folder=tmp_path)).passed == passes
    one, two = ([*map(str, command)] for command in commands)
    assert one[one.index("--batch_size") + 1] == "8"
    assert two[two.index("--batch_size") + 1] == "4" and two[two.index("--devices") + 1] == "0,1"


def test_the_miou_of_mixed_precision_is_that_of_float32(monkeypatch, tmp_path):
    write(tmp_path / "fp32", [{"kind": "eval", "miou": 0.85}])
    losses = [{"kind": "train", "loss": 3.0 - 0.014 * i} for i in range(200)]
    for miou, passes in ((0.835, True), (0.825, False)):
        lines = [*losses, {"kind": "eval", "miou": miou}]
        monkeypatch.setattr(runs, "quickstart", lambda *_, lines=lines: lines)
        context = GPU._replace(folder=tmp_path)
        assert runs.check_quickstart(context, "bf16").passed == passes
        assert runs.check_quickstart(context, "fp32").passed
