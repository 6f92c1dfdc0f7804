"""The host's time of a step, and the comparison with PyTorch, without a GPU."""

import json
import subprocess
import time
from types import SimpleNamespace

import paddle
import pytest

from paddleseg_segformer.doctor import Context, speed
from paddleseg_segformer.engine.train_step import StepResult

FOLDER = "speed_B0_16_bf16"


@pytest.fixture
def context(tmp_path, monkeypatch):
    """After a run of B0 with 16 images in bf16, at 40 images per second."""
    line = {"kind": "train", "iteration": 60, "lr": {}, "batch_cost": 0.4, "ips": 40.0}
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "train.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(paddle.device, "synchronize", lambda: None)
    return Context("gpu:0", 1, tmp_path)


@pytest.mark.parametrize("skipped", [None, "a loss is nan"])
def test_host_share(skipped, context, monkeypatch):
    """Steps of 10 ms, but for slow first ones."""
    calls = []

    def step(micro_batches, iteration):
        (batch,) = micro_batches
        calls.append(batch["img"].shape)
        time.sleep(0.05 if iteration <= speed.WARM_UP else 0.01)
        return StepResult([1.0], 1.0, skipped, [])

    built = []
    monkeypatch.setattr(speed, "build_step", lambda *arguments: built.append(arguments) or step)
    result = speed.check_host_share(context, "B0", "bf16")
    assert built == [("B0", "bf16")] and calls == [[1, 3, 64, 64]] * (speed.WARM_UP + speed.STEPS)
    seconds, shares = (result.details[name] for name in ("seconds", "shares"))
    assert 0.01 <= seconds < 0.05 and shares == {16: seconds / 0.4}
    assert result.measured == f"{1000 * seconds:.1f} ms, {seconds / 0.4:.0%} of a step of 16"
    assert result.passed == (skipped is None)


FOUND = {"images_per_second": 20.0, "peak_bytes": 3e9, "loss": 5.0, "torch": "2.13"}


@pytest.mark.parametrize(
    "found, passed, measured",
    [
        (FOUND, True, "20.00 images/s, 3.0 GB; ours is 2.00 times as fast"),
        ({**FOUND, "loss": float("nan")}, False, "20.00 images/s"),
        ({"skip": "PyTorch finds no GPU"}, None, "PyTorch finds no GPU"),
    ],
)
def test_pytorch(found, passed, measured, context, monkeypatch):
    commands = []

    def run(command, **_):
        commands.append(command)
        return SimpleNamespace(stdout=f"a warning\n{json.dumps(found)}\n")

    monkeypatch.setattr(speed, "find_spec", lambda name: True)
    monkeypatch.setattr(subprocess, "run", run)
    result = speed.check_pytorch(context, "B0", "bf16")
    assert result.passed is passed and result.measured.startswith(measured)
    options = json.loads(commands[0][-1])
    assert (options["device"], options["bf16"], options["images"]) == ("cuda", True, 16)
    assert options["config"]["decoder_hidden_size"] == 256


def test_without_pytorch_there_is_no_comparison(context, monkeypatch):
    monkeypatch.setattr(speed, "find_spec", lambda name: None if name == "torch" else True)
    result = speed.check_pytorch(context, "B0", "fp32")
    assert result.passed is None and result.measured == "needs torch"


@pytest.mark.slow
def test_a_step_of_pytorch(context):
    """On the CPU, with an image of 64x64."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    result = speed.check_pytorch(context, "B0", "fp32", "cpu", images=1, size=64, steps=1)
    assert result.passed and 4 < result.details["loss"] < 7  # log(150) is 5.0
    assert result.measured.endswith("0.0 GB")  # of a GPU


@pytest.mark.integration
def test_a_gpu_that_pytorch_does_not_find(context):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    result = speed.check_pytorch(context, "B0", "fp32")
    assert result.passed is None and result.measured == "PyTorch finds no GPU"
