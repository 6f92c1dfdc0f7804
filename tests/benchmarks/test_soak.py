"""benchmarks/soak.py and survey_models.py."""

import os
import re
import subprocess
import sys

import pytest
from fork_server import python
from run_tools import CONFIG, ROOT, run_tool, tiny_config

from paddleseg_segformer.data.scenes import write_scenes

pytestmark = pytest.mark.integration

GROWTH = """
import sys
sys.path.insert(0, "benchmarks")
import numpy as np
import soak
samples = np.zeros([9, 4])
samples[:, 0] = [0, 90, 10, 20, 30, 40, 50, 60, 70]  # warm up in the first third
samples[:, 1] = 7
soak.report("500 iterations", 500, samples)
"""


def test_growth_is_measured_after_the_warm_up():
    """10 MB a sample, of which 9 are 500 iterations: 180 MB in 1000."""
    done = python("-c", GROWTH)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(?m)^(\w[\w ,]+?) +([\d.]+) +([\d.]+) +(-?[\d.]+)$", done.stdout)
    assert [(name, *map(float, values)) for name, *values in found] == [
        ("memory, MB", 30, 60, 180),
        ("open files", 7, 7, 0),
        ("threads", 0, 0, 0),
        ("processes", 0, 0, 0),
    ]


TREE = """
import os, subprocess, sys, time
sys.path.insert(0, "benchmarks")
import soak
shell = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"])
while len(soak.process_tree(shell.pid)) < 3:
    time.sleep(0.01)
own = soak.metrics(os.getpid())
files = [open(os.devnull) for _ in range(5)]
more = soak.metrics(os.getpid())
print([soak.metrics(pid)[2:] for pid in soak.process_tree(shell.pid)])
print(more[1] - own[1], 20 < own[0] < 4000, soak.metrics(1 << 30))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")
def test_all_processes_of_a_tree_are_measured():
    done = python("-c", TREE)
    assert done.stdout.splitlines() == ["[(1, 1), (1, 1), (1, 1)]", "5 True (0.0, 0, 0, 1)"]


def test_a_model_of_the_survey_builds_trains_and_evaluates(tmp_path):
    """Or the step that fails is named."""
    write_scenes(tmp_path, train=4, val=2, size=(96, 96))
    for root, cell in ((tmp_path, "yes |"), (tmp_path / "absent", "trains: no, InputError: ")):
        done = run_tool("survey_models", "--dataset_root", root, "--models", "FastSCNN")
        assert done.returncode == 0, done.stderr
        (line,) = done.stdout.splitlines()[2:]
        assert line.startswith(f"| FastSCNN | its own | {cell}")
        assert line.endswith(" | has no backbone |")


@pytest.mark.slow
def test_a_short_soak(tmp_path):
    write_scenes(tmp_path / "data/scenes", train=4, val=2, size=(96, 96))
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    (tmp_path / "configs").mkdir()
    tiny_config(tmp_path / "configs", "data/scenes").rename(tmp_path / "configs/quickstart.yaml")
    train = ("train", "--config", CONFIG, "--save_dir", tmp_path / "run", "--iters", 1)
    assert run_tool(*train, "--device", "cpu", cwd=tmp_path).returncode == 0
    options = ("--iters", 200, "--predictions", 200, "--model_path", tmp_path / "run/iter_1")
    command = [sys.executable, ROOT / "benchmarks/soak.py", *options]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"(?m)^200 \w+", done.stdout) == ["200 iterations", "200 predictions"]
