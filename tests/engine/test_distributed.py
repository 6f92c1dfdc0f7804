"""Two processes with gloo on the CPU: they equal one process, and a dead one ends the job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_branches
import numpy as np
import paddle
import pytest
from paddle.distributed import parallel
from synchronized_steps import MICRO_BATCHES, STEPS, steps
from training_runs import (
    CONFIG,
    ROOT,
    assert_same_weights,
    overrides,
    tiny_config,
)
from two_processes import EXACT, FROZEN, train

from paddleseg_segformer.engine import checkpoint, distributed, validate
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.weights import read_saved_dict

pytestmark = pytest.mark.integration


def launch(folder, script, *arguments):
    """Start a script in two processes."""
    launcher = ("-m", "paddle.distributed.launch", "--nproc_per_node", 2)
    command = list(map(str, [sys.executable, *launcher, script, *arguments]))
    environment = {**os.environ, "PADDLE_LOG_DIR": str(folder / "log"), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


@pytest.fixture(scope="module")
def runs(scenes, tmp_path_factory):
    """The folder of the runs of two_processes.py."""
    folder = tmp_path_factory.mktemp("runs")
    finish(launch(folder, "tests/two_processes.py", scenes, folder))
    return folder


def finish(process):
    try:
        output, _ = process.communicate(timeout=300)
    finally:
        process.terminate()  # the launcher ends its processes
    assert process.returncode == 0, output[-3000:]


def notes(runs, label):
    return [json.loads((runs / f"{label}_{rank}.json").read_text()) for rank in (0, 1)]


def values(run, kind, name):
    return [line[name] for line in read_lines(run) if line["kind"] == kind]


@pytest.mark.parametrize("device, used", [("cpu", "cpu"), ("gpu:0", "gpu")])
def test_a_gpu_build_of_paddle_uses_the_selected_device(device, used, monkeypatch):
    """By default it uses a GPU, whatever device was set before."""
    monkeypatch.setattr(paddle, "get_device", lambda: device)
    monkeypatch.setattr(paddle.base.core, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    places = []

    def join():
        backend = os.environ.get("PADDLE_DISTRI_BACKEND", "auto")
        places.append("cpu" if parallel._is_cpuonly(backend) else "gpu")

    monkeypatch.setattr(paddle.distributed, "init_parallel_env", join)
    with monkeypatch.context() as environment:
        environment.setattr(os, "environ", dict(os.environ))
        distributed.start()
    assert places == [used]


def test_synchronized_batch_norm(tmp_path):
    """With a GPU's branches: the parameters stay the model's, and the steps are one process's."""
    finish(launch(tmp_path, "tests/synchronized_steps.py", tmp_path))
    one, *two = steps(), *(np.load(tmp_path / f"steps_{rank}.npz") for rank in (0, 1))
    for process in two:
        assert process["same_parameters"]
        assert process["synchronized_layers"] == process["batch_norm_layers"] == 5
        assert process["unsynchronized_backward_passes"] == STEPS * (MICRO_BATCHES - 1)
        np.testing.assert_allclose(process["results"], one["results"], rtol=1e-4)
        weights = {name: process[name] for name in one if name.startswith("weights ")}
        assert_same_weights(weights, {name: one[name] for name in weights}, rtol=1e-3, atol=1e-5)
    branches = json.loads((tmp_path / "steps_0.json").read_text())
    gpu_branches.visited.update(map(tuple, branches))


@pytest.mark.parametrize("name, options", [("exact", EXACT), ("frozen", FROZEN)])
def test_two_processes_equal_one_with_the_whole_batch(name, options, runs, scenes, tmp_path):
    """Four images a step: in one batch, and as 2 processes x 2 micro-batches of one image."""
    train(name, scenes, tmp_path, split=False, **options)
    for kind, value, count in (
        ("train", "loss", 4),
        ("eval", "accuracy", 2 * ("do_eval" in options)),
    ):
        one, two = (values(folder / name, kind, value) for folder in (tmp_path, runs))
        assert len(one) == count
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5 if kind == "train" else 1e-3)
    files = [folder / name / "iter_4/model.pdparams" for folder in (runs, tmp_path)]
    assert_same_weights(*files, rtol=1e-3, atol=1e-4)


def test_one_process_continues_a_run_of_two(runs, scenes, tmp_path, caplog):
    """A checkpoint has the number of samples seen by all processes."""
    assert [checkpoint.verify(runs / f"exact/iter_{i}")["samples"] for i in (2, 4)] == [8, 16]
    start = str(runs / "exact/iter_2")
    found = train("continued", scenes, tmp_path, split=False, resume_model=start, **EXACT)
    assert "Config changed since the checkpoint: processes: 2 -> 1" in caplog.text
    losses = values(runs / "exact", "train", "loss")[2:]
    np.testing.assert_allclose(values(tmp_path / "continued", "train", "loss"), losses, atol=1e-5)
    first, second = (process["files"][2:] for process in notes(runs, "exact"))
    assert found["files"] == [a + b for a, b in zip(first, second)]


def test_a_resumed_run_of_two_equals_the_uninterrupted_one(runs):
    """With dropout and EMA, after a signal to the second one in the second step."""
    whole, resumed = (runs / name for name in ("whole", "resumed"))
    assert values(resumed, "train", "loss") == values(whole, "train", "loss")
    for name in ("model.pdparams", "ema_model.pdparams"):
        assert_same_weights(resumed / "iter_4" / name, whole / "iter_4" / name)
    for before, after in zip(notes(runs, "whole"), notes(runs, "resumed")):
        assert after["draws"] == before["draws"][2:] and after["files"] == before["files"][2:]


def test_dropout_differs_between_processes(runs):
    draws = [draw for process in notes(runs, "whole") for step in process["draws"] for draw in step]
    assert len(set(draws)) == len(draws) == 2 * 4 * 2


def test_all_processes_evaluate_the_model_that_is_saved(runs, scenes):
    """Before, each has its own statistics of BatchNorm."""
    for prefix in ("", "ema_"):
        scores = validate(tiny_config(scenes), runs / f"whole/iter_4/{prefix}model.pdparams")
        found = [values(runs / "whole", f"{prefix}eval", name)[-1] for name in ("accuracy", "miou")]
        assert found == [scores.accuracy, scores.miou]


def test_speed_is_that_of_all_processes(runs):
    for line in read_lines(runs / "whole"):
        if line["kind"] == "train":  # four images a step
            assert line["ips"] * line["batch_cost"] == pytest.approx(4)


def test_all_processes_skip_a_bad_step_and_the_first_logs_it(runs):
    bad_sample = notes(runs, "nan")[1]["files"][1][0]
    (skip,) = (line for line in read_lines(runs / "nan") if line["kind"] == "skipped_step")
    assert skip["iteration"] == 2 and skip["text"].endswith(f"with {bad_sample}")
    weights = read_saved_dict(runs / "nan/iter_3/model.pdparams")
    assert all(np.isfinite(value).all() for value in weights.values())


def test_a_signal_to_one_process_stops_all_after_the_same_step(runs):
    for process in notes(runs, "stopped"):
        assert (len(process["files"]), process["code"]) == (2, 143)
    assert {path.name for path in (runs / "resumed").glob("iter_*")} == {"iter_2", "iter_4"}


def test_an_error_of_one_process_ends_all_after_saving(runs):
    first, second = (process["code"] for process in notes(runs, "failing"))
    assert first == "Another process has failed; see its log." and second == "a.jpg: is broken"
    assert [path.name for path in (runs / "failing").glob("iter_*")] == ["iter_2"]


def test_a_dead_process_ends_the_job(scenes, tmp_path):
    run = ("--config", CONFIG, "--device", "cpu", "--save_dir", tmp_path, "--log_iters", 1)
    length = ("--iters", 10000, "--batch_size", 1)
    process = launch(tmp_path, "tools/train.py", *run, *length, "--opts", *overrides(scenes))
    try:
        deadline = time.monotonic() + 120
        while not read_lines(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.2)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert len(children) == 2
        os.kill(int(children[-1]), signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    finally:
        process.terminate()  # the launcher ends its processes
    assert process.returncode != 0
    assert "Container failed" in output or "Traceback" in output
