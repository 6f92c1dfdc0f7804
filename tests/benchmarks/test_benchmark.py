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


TABLE = """
import sys, types
sys.path.insert(0, "benchmarks")
import benchmark
rows = []
for name, seconds, memory, agreement in (
    ("ours", [0.3, 0.1, 0.2], 100 << 20, {"ours": 1.0, "theirs": 0.875}),
    ("theirs", [0.9, 0.8, 0.7], 400 << 20, {"ours": 1.0, "theirs": 0.875}),
):
    summary = {"peak_memory": memory, "gmacs": 2.0, "machine_gmacs_per_second": 60.0}
    process = types.SimpleNamespace(name=name, seconds=seconds, summary=summary)
    spec = {"job": sys.argv[1], "batch_size": 4, "samples": 6}
    rows.append(benchmark.result_row(process, spec, agreement if sys.argv[1] == "infer" else {}))
print(benchmark.format_table(rows))
"""


@pytest.mark.parametrize("job, of_peak", [("train", ("200%", "50%")), ("infer", ("67%", "17%"))])
def test_medians_ratios_and_share_of_the_peak(job, of_peak):
    """Ours takes 0.2 s for 4 images of 2 GMACs; a training step has three times as many."""
    done = python("-c", TABLE, job)
    assert done.returncode == 0, done.stderr
    ours, theirs = (line.split() for line in done.stdout.splitlines()[1:])
    assert ours[:11] == f"ours 0.200 s 0.100-0.300 s 1.00x 100 MB 1.00x 2.0 {of_peak[0]}".split()
    expected = f"theirs 0.800 s 0.700-0.900 s 0.25x 400 MB 0.25x 2.0 {of_peak[1]}".split()
    assert theirs[:11] == expected and ours[11:] == []
    assert theirs[11:] == (["87.50%", "of", "pixels", "agree"] if job == "infer" else [])


ROUNDS = """
import sys
sys.path.insert(0, "benchmarks")
import benchmark
import numpy as np
log = []
class Process:
    def __init__(self, name, spec, threads):
        self.name, self.seconds, self.spec = name, [], spec
        log.append(f"start {name} {spec['weights'].rsplit('/')[-1]}")
    def run(self):
        log.append(self.name)
        return float(len(log))
    def finish(self):
        labels = {"ours": [1, 2, 3, 4], "huggingface": [1, 2, 3, 9]}[self.name]
        np.save(self.spec["result"], labels)
benchmark.Process = Process
processes, agreement = benchmark.measure(["ours", "huggingface"], {"job": "infer"}, 2, None)
print("; ".join(log))
print([(p.name, p.seconds) for p in processes], agreement)
"""


def test_implementations_alternate_after_two_rounds_of_warm_up():
    """Hugging Face, which cannot read other formats, writes the weights for all."""
    done = python("-c", ROUNDS)
    assert done.returncode == 0, done.stderr
    order = "start huggingface weights; start ours weights" + 4 * "; ours; huggingface"
    seconds = [("ours", [7.0, 9.0]), ("huggingface", [8.0, 10.0])]
    agreement = {"ours": 1.0, "huggingface": 0.75}
    assert done.stdout.splitlines() == [order, f"{seconds} {agreement}"]
