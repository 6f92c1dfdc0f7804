"""Measure speed and memory, alone or side by side with other implementations.

Each implementation works in a process of its own, with the same inputs and weights; their runs take
turns, so that a busy machine slows all of them alike. The figures are medians.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from paddleseg_segformer import device
from paddleseg_segformer.cli import common
from paddleseg_segformer.config import load_config
from paddleseg_segformer.engine.evaluator import write_figures
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.fs import check_file_writable

JOBS = {
    "train": "a training step: forward, loss, backward, AdamW",
    "infer": "images in memory to label maps of their size",
    "eval": "the validation set at six scales, mirrored (its dataset_root through --opts)",
    "data": "reading and transforming training images, on one core",
}
OTHERS = ("paddleseg", "paddleseg-as-installed", "huggingface")
# Implementations for infer alone, as exported graphs or compiled.
GRAPHS = ("ours-paddle-inference", "ours-onnxruntime", "ours-openvino")
GRAPHS += ("paddleseg-onnxruntime", "paddleseg-openvino", "huggingface-compiled")


def parse_args():
    parser = common.config_parser(
        __doc__,
        "train --config "
        "configs/segformer_mit-b0_512x512_160k_ade20k.yaml --against paddleseg huggingface",
    )
    jobs = "; ".join(f"{name}: {text}" for name, text in JOBS.items())
    parser.add_argument("job", choices=JOBS, help=jobs)
    parser.add_argument(
        "--against", nargs="+", choices=(*OTHERS, *GRAPHS), default=[], help="who else runs"
    )
    parser.add_argument(
        "--size", nargs=2, type=common.positive_int, default=[512, 512], metavar=("H", "W")
    )
    parser.add_argument("--batch_size", type=common.positive_int, help="train: 2, infer: 1")
    parser.add_argument("--rounds", type=common.positive_int, default=5, help="timed runs of each")
    parser.add_argument("--samples", type=common.positive_int, default=60, help="data: images a run")
    parser.add_argument("--threads", type=common.positive_int, help="on a CPU; else as many as it has")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--json", metavar="FILE", help="write every figure to a file")
    return parser.parse_args()


class Process:
    """One implementation at work."""

    def __init__(self, name, spec, threads):
        environment = dict(os.environ)
        if not device.USER_SET_THREADS:  # then it is Paddle that set it, in this process
            environment.pop("OMP_NUM_THREADS", None)
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        self.name, self.seconds = name, []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the process)
        self.process = subprocess.Popen(
            [*command, json.dumps({**spec, "implementation": name})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            sys.exit(f"{self.name} ended. Its last words:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def run(self):
        print("go", file=self.process.stdin, flush=True)
        return self.answer()["seconds"]

    def finish(self):
        self.process.stdin.close()
        self.summary = self.answer()
        self.process.wait()


def measure(names, spec, rounds, threads):
    """Run the implementations in turns; returns them with their figures."""
    with tempfile.TemporaryDirectory() as folder:
        # Whoever starts first writes the weights that the others read.
        first = sorted(names, key=lambda name: not name.startswith("huggingface"))
        weights = "weights" if first[0].startswith("huggingface") else "weights.pdparams"
        spec = {**spec, "weights": str(Path(folder, weights))}
        processes = []
        for name in first:
            result = str(Path(folder, f"{name}.npy"))
            processes.append(Process(name, {**spec, "result": result}, threads))
        processes.sort(key=lambda process: names.index(process.name))
        for turn in range(rounds + 1):  # the first, which warms up, does not count
            for process in processes:
                seconds = process.run()
                process.seconds += [seconds] if turn else []
                print(f"\rround {turn}/{rounds} {process.name:24}", end="", file=sys.stderr)
        print("\r" + " " * 50 + "\r", end="", file=sys.stderr)
        for process in processes:
            process.finish()
        agreement = _agreement(folder, names) if spec["job"] == "infer" else {}
    return processes, agreement


def _agreement(folder, names):
    """Share of the pixels that the others label as ours does."""
    import numpy as np

    maps = {name: np.load(Path(folder, f"{name}.npy")) for name in names}
    return {name: float((maps[name] == maps["ours"]).mean()) for name in names}


def figures(process, spec, agreement):
    """One implementation's figures, as plain JSON."""
    ordered = sorted(process.seconds)
    result = {
        "name": process.name,
        "seconds": statistics.median(ordered),
        "fastest": ordered[0],
        "slowest": ordered[-1],
        **process.summary,
    }
    if "gmacs" in result:  # a backward pass counts as two forward passes
        work = result["gmacs"] * spec["batch_size"] * (3 if spec["job"] == "train" else 1)
        result["of_peak"] = work / result["seconds"] / result["machine_gmacs_per_second"]
    if spec["job"] == "data":
        result["images_per_second"] = spec["samples"] / result["seconds"]
    if process.name in agreement:
        result["same_pixels"] = agreement[process.name]
    return result


def table(rows):
    """The figures as text; ratios are ours over theirs, the smaller the better for us."""
    head = f"{'':24} {'median':>9} {'range':>17} {'ratio':>6} {'memory':>9} {'ratio':>6}"
    lines = [head + ("   GMACs  of peak" if "gmacs" in rows[0] else "")]
    ours = rows[0]
    for row in rows:
        extent = f"{row['fastest']:.3f}-{row['slowest']:.3f} s"
        line = f"{row['name']:24} {row['seconds']:7.3f} s {extent:>17}"
        line += f" {ours['seconds'] / row['seconds']:5.2f}x {row['peak_memory'] / 2**20:6.0f} MB"
        line += f" {ours['peak_memory'] / row['peak_memory']:5.2f}x"
        if "gmacs" in row:
            line += f" {row['gmacs']:7.1f} {row['of_peak']:8.0%}"
        if "images_per_second" in row:
            line += f"  {row['images_per_second']:.0f} images/s"
        if "same_pixels" in row and row is not ours:
            line += f"  {row['same_pixels']:.2%} of pixels alike"
        lines.append(line)
    return "\n".join(lines)


def main():
    args = parse_args()
    config = load_config(args.config, args.opts)
    model = config.dic["model"]
    defaults = {"train": 2, "infer": 1}
    spec = {
        "job": args.job,
        "config": args.config,
        "opts": args.opts,
        "size": args.size,
        "batch_size": args.batch_size or defaults.get(args.job, 1),
        "classes": model["num_classes"],
        "width": model.get("embedding_dim"),
        "backbone": model["backbone"]["type"].rsplit("_", 1)[-1],
        "device": args.device,
        "precision": args.precision,
        "samples": args.samples,
    }
    if args.job in ("eval", "data") and "huggingface" in args.against:
        raise InputError(f"--against huggingface: transformers has no {args.job} to compare with.")
    for name in set(GRAPHS) & set(args.against):
        if args.job != "infer":
            raise InputError(f"--against {name}: is for infer alone.")
    if args.against and model.get("stage_projection", "linear") != "linear":
        raise InputError(f"{args.config}: the others have no stage_projection but the paper's.")
    if args.against and spec["width"] is None:
        raise InputError(
            f"{args.config}: model.embedding_dim: is missing; --against compares SegFormers alone."
        )
    if args.precision != "fp32" and not device.has_gpu():
        raise InputError(f"--precision {args.precision}: needs a GPU; on a CPU use fp32.")
    if args.json:
        check_file_writable(args.json, "--json")
    processes, agreement = measure(["ours", *args.against], spec, args.rounds, args.threads)
    rows = [figures(process, spec, agreement) for process in processes]
    print(f"{args.job}, {args.config}, {_machine()}")
    print(table(rows))
    if args.json:
        report = {"machine": _machine(), "spec": spec, "rows": rows}
        write_figures(Path(args.json), report)


def _machine():
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    return f"{cpu}, {os.cpu_count()} cores"


if __name__ == "__main__":
    common.run(main)
