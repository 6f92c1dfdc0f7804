"""What the speed of training on a GPU is beside the host's, and beside PyTorch's."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import paddle

from ..engine.metric_writer import read_lines
from ..models import VARIANTS
from .runner import Result
from .runs import speed_folder
from .steps import CLASSES, build_step, random_batch

WARM_UP, STEPS = 5, 20
SCRIPT = Path(__file__).with_name("pytorch_step.py")


def check_host_share(context, variant, precision):
    """The host's time for issuing a step, over the time of the steps of ``check_speed``.

    A step with one image of 64x64 has the same kernels (but for the few of the loss of more than
    four images), and so little work in each that the device waits for the host.
    """
    step, batch = build_step(variant, precision), random_batch(1, 64)
    for i in range(WARM_UP + STEPS):
        if i == WARM_UP:
            paddle.device.synchronize()
            start = time.perf_counter()
        result = step([batch], i + 1)
    paddle.device.synchronize()
    seconds = (time.perf_counter() - start) / STEPS
    shares = {}
    for batch_size in (2, 16):
        line = _speed(context, variant, batch_size, precision)
        if line:
            shares[batch_size] = seconds / line["batch_cost"]
    measured = f"{1000 * seconds:.1f} ms"
    for batch_size, share in shares.items():
        measured += f", {share:.0%} of a step of {batch_size}"
    return Result(result.skipped is None, measured, "", {"seconds": seconds, "shares": shares})


def check_pytorch(context, variant, precision, device="cuda", images=16, size=512, steps=10):
    """Images per second and peak memory of Hugging Face's SegFormer, beside ``check_speed``'s."""
    missing = [name for name in ("torch", "transformers") if find_spec(name) is None]
    if missing:
        return Result(None, f"needs {' and '.join(missing)}")
    sizes = VARIANTS[variant]
    config = {
        "hidden_sizes": sizes.embed_dims,
        "depths": sizes.depths,
        "num_attention_heads": sizes.num_heads,
        "sr_ratios": sizes.sr_ratios,
        "decoder_hidden_size": sizes.decoder_width,
        "num_labels": CLASSES,
        "semantic_loss_ignore_index": 255,
    }
    options = {"config": config, "device": device, "bf16": precision == "bf16", "images": images}
    options.update(size=size, classes=CLASSES, steps=steps)
    command = [sys.executable, str(SCRIPT), json.dumps(options)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(process.stdout.splitlines()[-1])
    if "skip" in found:
        return Result(None, found["skip"])
    measured = f"{found['images_per_second']:.2f} images/s, {found['peak_bytes'] / 1e9:.1f} GB"
    line = _speed(context, variant, images, precision)
    if line:
        found["ratio"] = line["ips"] / found["images_per_second"]
        measured += f"; ours is {found['ratio']:.2f} times as fast"
    return Result(math.isfinite(found["loss"]), measured, "", found)


def _speed(context, variant, batch_size, precision):
    """The last line of ``check_speed``'s run; None if there is none."""
    lines = read_lines(speed_folder(context, variant, batch_size, precision))
    return next((line for line in reversed(lines) if line["kind"] == "train"), None)
