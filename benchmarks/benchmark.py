"""Measure speed and memory, alone or side by side with other implementations.

Each implementation runs in its own process, with the same inputs and weights. The runs of the
implementations alternate, so that background load affects all of them. Times are medians.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from implementations import IMPLEMENTATIONS, INFERENCE_ONLY

from paddleseg_segformer import device
from paddleseg_segformer.cli import common
from paddleseg_segformer.config import load_config
from paddleseg_segformer.engine.evaluator import write_figures
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.fs import check_file_writable

WARM_UP_ROUNDS = 2  # torch.compile's second run is still slower than its later ones

JOBS = {
    "train": "a training step: forward, loss, backward, AdamW",
    "infer": "from images in memory to full-size label maps",
    "eval": "the validation set with 6 scales and horizontal flip (set dataset_root with --opts)",
    "data": "reading and transforming training images on one core",
}


DEFAULT_BATCH_SIZES = {"train": 2, "infer": 1}


def model_spec(model):
    """The entries of a worker's spec that come from the config's ``model``."""
    return {
        "classes": model["num_classes"],
        "width": model.get("embedding_dim"),
        "backbone": model["backbone"]["type"].rsplit("_", 1)[-1],
    }


def add_size_argument(parser, text):
    """Add ``--size``, the height and width of the images, with a help text."""
    size = {"type": common.positive_int, "nargs": 2, "metavar": ("H", "W")}
    parser.add_argument("--size", default=[512, 512], help=text, **size)


def parse_args():
    parser = common.config_parser(
        __doc__,
        "train --config "
        "configs/segformer_mit-b0_512x512_160k_ade20k.yaml --against paddleseg huggingface",
    )
    jobs = "; ".join(f"{name}: {text}" for name, text in JOBS.items())
    parser.add_argument("job", choices=JOBS, help=jobs)
    parser.add_argument(
        "--against",
        nargs="+",
        choices=[name for name in (*IMPLEMENTATIONS, *INFERENCE_ONLY) if name != "ours"],
        default=[],
        metavar="NAME",
        help="implementations to compare with: %(choices)s",
    )
    add_size_argument(parser, "image size of train and infer")
    parser.add_argument(
        "--batch_size",
        type=common.positive_int,
        metavar="N",
        help="batch size (default: train 2, infer 1)",
    )
    parser.add_argument(
        "--rounds",
        type=common.positive_int,
        metavar="N",
        default=5,
        help="timed runs per implementation",
    )
    parser.add_argument(
        "--samples",
        type=common.positive_int,
        metavar="N",
        default=60,
        help="images per run of data",
    )
    parser.add_argument(
        "--threads", type=common.positive_int, metavar="N", help="CPU threads (default: all cores)"
    )
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="fp16 and bf16: on a GPU",
    )
    parser.add_argument("--json", metavar="FILE", help="write all results to a JSON file")
    return parser.parse_args()


class Process:
    """One implementation in a worker process.

    Attributes:
        seconds: Times of the runs.
        summary: After ``finish``, what the worker measured: peak memory and multiply-accumulates.
    """

    def __init__(self, name, spec, threads):
        environment = dict(os.environ)
        if not device.USER_SET_THREADS:  # importing Paddle has set it
            environment.pop("OMP_NUM_THREADS", None)
        if threads:
            environment["OMP_NUM_THREADS"] = str(threads)
        command = [sys.executable, str(Path(__file__).with_name("worker.py"))]
        self.name, self.seconds = name, []
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [*command, json.dumps({**spec, "implementation": name})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        self.read_reply()

    def read_reply(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            sys.exit(f"{self.name}: the worker process failed:\n{self.errors.read()[-2000:]}")
        return json.loads(line)

    def run(self):
        print("go", file=self.process.stdin, flush=True)
        return self.read_reply()["seconds"]

    def finish(self):
        self.process.stdin.close()
        self.summary = self.read_reply()
        self.process.wait()


def measure(names, spec, rounds, threads):
    """Run the implementations alternately.

    Returns:
        The finished processes in the order of ``names``, and the pixel agreement by name.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The first process to start writes the weights; Hugging Face's cannot read other formats.
        start_order = sorted(names, key=lambda name: not name.startswith("huggingface"))
        weights = "weights" if start_order[0].startswith("huggingface") else "weights.pdparams"
        spec = {**spec, "weights": str(Path(folder, weights))}
        processes = []
        for name in start_order:
            result = str(Path(folder, f"{name}.npy"))
            processes.append(Process(name, {**spec, "result": result}, threads))
        processes.sort(key=lambda process: names.index(process.name))
        for number in range(-WARM_UP_ROUNDS, rounds):
            for process in processes:
                seconds = process.run()
                process.seconds += [seconds] if number >= 0 else []
                if sys.stderr.isatty():
                    done = max(0, number + 1)
                    print(f"\rround {done}/{rounds} {process.name:24}", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print("\r" + " " * 50 + "\r", end="", file=sys.stderr)
        for process in processes:
            process.finish()
        agreement = _agreement(folder, names) if spec["job"] == "infer" else {}
    return processes, agreement


def _agreement(folder, names):
    """The fraction of pixels whose class equals that of ours, by name."""
    maps = {name: np.load(Path(folder, f"{name}.npy")) for name in names}
    return {name: float((maps[name] == maps["ours"]).mean()) for name in names}


def result_row(process, spec, agreement):
    """The results of one implementation, plain JSON."""
    ordered = sorted(process.seconds)
    result = {
        "name": process.name,
        "seconds": statistics.median(ordered),
        "fastest": ordered[0],
        "slowest": ordered[-1],
        **process.summary,
    }
    if "gmacs" in result:  # a backward pass has twice the operations of a forward pass
        gmacs = result["gmacs"] * spec["batch_size"] * (3 if spec["job"] == "train" else 1)
        result["of_peak"] = gmacs / result["seconds"] / result["machine_gmacs_per_second"]
    if spec["job"] == "data":
        result["images_per_second"] = spec["samples"] / result["seconds"]
    if process.name in agreement:
        result["same_pixels"] = agreement[process.name]
    return result


def format_table(rows):
    """The rows as text. A ratio divides ours by the row's value: below 1, ours is better."""
    header = f"{'':24} {'median':>9} {'range':>17} {'ratio':>6} {'memory':>9} {'ratio':>6}"
    lines = [header + ("   GMACs  of peak" if "gmacs" in rows[0] else "")]
    ours = rows[0]
    for row in rows:
        time_range = f"{row['fastest']:.3f}-{row['slowest']:.3f} s"
        line = f"{row['name']:24} {row['seconds']:7.3f} s {time_range:>17}"
        line += f" {ours['seconds'] / row['seconds']:5.2f}x {row['peak_memory'] / 2**20:6.0f} MB"
        line += f" {ours['peak_memory'] / row['peak_memory']:5.2f}x"
        if "gmacs" in row:
            line += f" {row['gmacs']:7.1f} {row['of_peak']:8.0%}"
        if "images_per_second" in row:
            line += f"  {row['images_per_second']:.0f} images/s"
        if "same_pixels" in row and row is not ours:
            line += f"  {row['same_pixels']:.2%} of pixels agree"
        lines.append(line)
    return "\n".join(lines)


def main():
    args = parse_args()
    model = load_config(args.config, args.opts).dic["model"]
    spec = {
        "job": args.job,
        "config": args.config,
        "opts": args.opts,
        "size": args.size,
        "batch_size": args.batch_size or DEFAULT_BATCH_SIZES.get(args.job, 1),
        **model_spec(model),
        "device": args.device,
        "precision": args.precision,
        "samples": args.samples,
    }
    for name in args.against if args.job in ("eval", "data") else ():
        if name.startswith("huggingface"):
            raise InputError(f"--against {name}: transformers has no {args.job} to compare with.")
    for name in INFERENCE_ONLY.keys() & set(args.against):
        if args.job != "infer":
            raise InputError(f"--against {name}: supports only the job infer.")
    if args.against and model.get("stage_projection", "linear") != "linear":
        raise InputError(
            f"{args.config}: model.stage_projection: must be linear with --against; the other "
            "implementations have no other."
        )
    if args.against and spec["width"] is None:
        raise InputError(
            f"{args.config}: model.embedding_dim: is missing; --against compares only SegFormers."
        )
    if args.precision != "fp32" and not device.has_gpu():
        raise InputError(f"--precision {args.precision}: needs a GPU; on a CPU use fp32.")
    if args.json:
        check_file_writable(args.json, "--json")
    processes, agreement = measure(["ours", *args.against], spec, args.rounds, args.threads)
    rows = [result_row(process, spec, agreement) for process in processes]
    print(f"{args.job}, {args.config}, {machine()}")
    print(format_table(rows))
    if args.json:
        report = {"machine": machine(), "spec": spec, "rows": rows}
        write_figures(Path(args.json), report)


def machine():
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        models = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = models[0].split(":")[1].strip() if models else cpu
    return f"{cpu}, {os.cpu_count()} cores"


if __name__ == "__main__":
    common.run(main)
