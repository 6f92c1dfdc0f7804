"""benchmarks/benchmark.py and its worker processes."""

import json
import os

import pytest
from fork_server import python
from run_tools import CONFIG, cpu_options, run_tool

from paddleseg_segformer.data.scenes import write_scenes

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_results_of_infer(tmp_path):
    results = tmp_path / "results.json"
    done = run_tool(
        *("benchmark", "infer", "--config", CONFIG, "--size", 64, 64, "--rounds", 1),
        *("--against", "paddleseg", "ours-paddle-inference", "--device", "cpu", "--json", results),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(results.read_text())["rows"]
    assert [row["name"] for row in rows] == ["ours", "paddleseg", "ours-paddle-inference"]
    for row in rows:
        assert row["same_pixels"] > 0.999
        assert row["fastest"] <= row["seconds"] <= row["slowest"] and row["gmacs"] > 0
        assert row["name"] in done.stdout


def test_data_of_any_paddleseg_model(tmp_path):
    write_scenes(tmp_path, train=6, val=3, size=(96, 96))
    config = tmp_path / "config.yaml"
    config.write_text(
        f"_base_: {CONFIG}\n"
        "model: {_inherited_: false, type: FCN, num_classes: 150, backbone_indices: [3],\n"
        "  channels: 8, backbone: {type: MixVisionTransformer_B0, in_channels: 3}}\n"
    )
    (tmp_path / "earlier.json").write_text("old")
    os.link(tmp_path / "earlier.json", tmp_path / "results.json")
    short = ("--samples", 2, "--rounds", 1, "--json", tmp_path / "results.json")
    options = cpu_options(tmp_path, "optimizer.custom_cfg=null")
    done = run_tool("benchmark", "data", "--config", config, *short, *options)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert (tmp_path / "earlier.json").read_text() == "old"  # replaced, not overwritten
    done = run_tool(
        *("benchmark", "train", "--config", config, *short, "--against", "paddleseg", *options)
    )
    assert done.returncode == 2 and "model.embedding_dim: is missing" in done.stderr


def test_comparisons_that_are_not_supported(tmp_path):
    short = ("--config", CONFIG, "--rounds", 1, "--device", "cpu")
    done = run_tool("benchmark", "train", *short, "--against", "ours-onnxruntime")
    assert done.returncode == 2 and "ours-onnxruntime: supports only the job infer" in done.stderr
    done = run_tool("benchmark", "eval", *short, "--against", "huggingface")
    assert done.returncode == 2 and "transformers has no eval" in done.stderr


GPU_MEMORY = """
import sys
sys.path.insert(0, "benchmarks")
import worker
class FakeGPU:  # 100 bytes are allocated before the run; the peak was higher earlier
    allocated, peak = 100, 900
    def __init__(self, spec): pass
    def eval(self): return lambda: None
    def synchronize(self): pass
    def baseline_memory(self):
        self.peak = 350  # reset
        return self.allocated
    def peak_memory(self): return self.peak
worker.IMPLEMENTATIONS["ours"] = FakeGPU
spec = dict(implementation="ours", job="eval", size=[32, 32], batch_size=1, classes=2)
sys.stdin = ["go"]
sys.argv = ["worker.py", worker.json.dumps(spec)]
worker.main()
"""


def test_gpu_memory_is_measured_above_the_baseline():
    done = python("-c", GPU_MEMORY)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"peak_memory": 250}
