"""Two processes with gloo on the CPU: they equal one process, and a dead one ends the job."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import paddle
import pytest
from paddle.distributed import parallel

from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.weights import read_saved_dict

ROOT = Path(__file__).parents[2]
TWO = ("-m", "paddle.distributed.launch", "--nproc_per_node", 2)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=6, val=3, size=(96, 96))
    return root


def start(scenes, save_dir, launcher, *more, script="fixed_statistics"):
    arguments = [
        *(sys.executable, *launcher, f"tests/engine/{script}.py"),
        *("--config", "configs/quickstart.yaml", "--device", "cpu", "--log_iters", 1),
        *("--save_dir", save_dir, *more, "--opts", f"train_dataset.dataset_root={scenes}"),
        *("model.dropout=0.0", "model.backbone.drop_path_rate=0.0"),
        "loss.types=[{type: CrossEntropyLoss, avg_non_ignore: true}]",
    ]
    environment = {**os.environ, "PADDLE_LOG_DIR": str(save_dir / "log"), "PYTHONPATH": str(ROOT)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(list(map(str, arguments)), cwd=ROOT, env=environment, **pipes)


def test_on_a_cpu_a_gpu_build_of_paddle_uses_the_cpu(monkeypatch):
    """By default it uses a GPU, whatever device was set before."""
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
    assert places == ["cpu"]


@pytest.mark.parametrize("more", [(), ("--freeze_backbone",)], ids=["whole", "frozen"])
def test_two_processes_equal_one_with_the_whole_batch(more, scenes, tmp_path):
    """Ten steps of four images: in one batch, and as 2 processes x 2 micro-batches of one image."""
    runs = {
        "one": ((), "--batch_size", 4),
        "two": (TWO, "--batch_size", 1, "--grad_accum_steps", 2),
    }
    for name, (launcher, *batch) in runs.items():
        process = start(scenes, tmp_path / name, launcher, "--iters", 10, *batch, *more)
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output[-3000:]
    one, two = ([line["loss"] for line in read_lines(tmp_path / name)] for name in runs)
    assert len(one) == 10 and one[-1] < one[0]
    np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
    one, two = (read_saved_dict(tmp_path / name / "iter_10/model.pdparams") for name in runs)
    for name, value in one.items():
        np.testing.assert_allclose(two[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_all_processes_skip_a_bad_step_and_the_first_logs_it(scenes, tmp_path):
    options = ("--iters", 3, "--batch_size", 2, "--grad_accum_steps", 2)
    process = start(scenes, tmp_path, TWO, *options, script="nan_in_second_process")
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-3000:]
    (log,) = (tmp_path / "log").glob("workerlog.1")
    bad_sample = re.search(r"bad sample: (.*)", log.read_text())[1]
    (skip,) = (line for line in read_lines(tmp_path) if line["kind"] == "skipped_step")
    assert skip["iteration"] == 2 and skip["text"].endswith(f"with {bad_sample}")
    weights = read_saved_dict(tmp_path / "iter_3/model.pdparams")
    assert all(np.isfinite(value).all() for value in weights.values())


def test_a_dead_process_ends_the_job(scenes, tmp_path):
    process = start(scenes, tmp_path, TWO, "--iters", 10000, "--batch_size", 1)
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
