"""Mixed precision: what a run requests of Paddle, and its loss scale across a resume."""

import contextlib
from functools import partial
from types import SimpleNamespace

import paddle
import pytest
from training_runs import assert_same_weights, run, tiny_config

from paddleseg_segformer.engine import checkpoint, options

pytestmark = pytest.mark.integration


@pytest.fixture
def casts(monkeypatch):
    """Loss scaling as on a GPU, and the arguments of ``auto_cast``, which casts nothing."""
    requested, new_scaler = [], paddle.amp.GradScaler

    def scaler(**arguments):
        with monkeypatch.context() as patch:
            patch.setattr(paddle.base.core.Place, "is_gpu_place", lambda place: True)
            return new_scaler(**arguments)

    def auto_cast(**arguments):
        requested.append(arguments)
        return contextlib.nullcontext()

    state = paddle.amp.grad_scaler.amp_global_state()
    monkeypatch.setattr(state, "amp_dtype", "float16")  # without it, scalers disable themselves
    monkeypatch.setattr(options, "paddle", SimpleNamespace(get_device=lambda: "gpu:0"))
    monkeypatch.setattr(paddle.amp, "GradScaler", scaler)
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    return requested


@pytest.mark.parametrize(
    "precision, dtype, scale",
    [("fp32", None, None), ("bf16", "bfloat16", None), ("fp16", "float16", 2.0**16)],
)
def test_precision_and_loss_scaling(precision, dtype, scale, casts, scenes, tmp_path):
    """Only float16 needs loss scaling."""
    done = run(tiny_config(scenes, iters=1), tmp_path, precision=precision, num_workers=0)
    enabled = [cast["dtype"] for cast in casts if cast["enable"]]
    assert enabled == ([dtype] * 2 if dtype else [])
    assert checkpoint.verify(done)["scaler"].get("scale") == scale


def test_the_loss_scale_is_resumed(casts, scenes, tmp_path, monkeypatch):
    """It starts so high that the gradients overflow, which halves it in the first steps."""
    scaler = partial(paddle.amp.GradScaler, init_loss_scaling=2.0**126)
    monkeypatch.setattr(paddle.amp, "GradScaler", scaler)
    config = partial(tiny_config, scenes, "loss.coef=[1000]", iters=6)
    fp16 = {"precision": "fp16", "num_workers": 0}
    whole = run(config(), tmp_path / "whole", **fp16)
    start = tmp_path / "whole/iter_2"
    resumed = run(config(), tmp_path / "own", resume_model=str(start), **fp16)
    first, last, again = (checkpoint.verify(f)["scaler"] for f in (start, whole, resumed))
    assert 2.0**126 > first["scale"] > last["scale"] and again == last
    assert_same_weights(resumed / "model.pdparams", whole / "model.pdparams")
