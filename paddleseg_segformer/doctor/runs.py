"""Short training runs on drawn scenes: the loss falls, resuming is exact, and the speed."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import numpy as np
import paddle

from ..config import load_config
from ..data.scenes import write_scenes
from ..engine import train
from ..engine.checkpoint import MODEL
from ..engine.metric_writer import read_lines
from ..weights import read_saved_dict
from .runner import Result
from .steps import recipe

QUICKSTART = "configs/quickstart.yaml"
PAPER_ITERS = 160_000
# By the number of iterations: the loss of the last tenth of the run, over that of its first tenth,
# which is 0.15 and 0.07 in float32 on a CPU; and the mIoU, which is 0.85 there.
MAX_LOSS_RATIO = {20: 0.4, 200: 0.2}
MIN_MIOU = {200: 0.75}
MAX_MIOU_DROP = 0.02  # of mixed precision, as between two seeds
# A resumed run's losses: exact on a CPU. On a GPU the gradient of a resize is summed in any order,
# a relative error of 1e-7 that grows with each step; forgotten moments change them by over 1e-2.
RESUME_STEPS, RESUME_BOUND = 10, 1e-3
TWO_GPU_BOUND = 1e-3  # relative, of three steps' losses: sums in another order, and TF32
MAX_READER_SHARE = 0.3  # of a step; above it the device waits for the data, not the reverse


def draw(context, name, train_images, val_images, size):
    """The folder of a drawn data set, which the checks share."""
    root = context.folder / name
    if not root.exists():
        partial = context.folder / f"{name}.partial"
        write_scenes(partial, train_images, val_images, size)
        partial.rename(root)
    return root


def at(root):
    """The config overrides for a data set."""
    return [f"{split}_dataset.dataset_root={root}" for split in ("train", "val")]


def quickstart(context, name, precision="fp32", iters=None, **options):
    """Train the quick start in the folder ``name``; its lines of ``train.jsonl``."""
    images = (240, 40) if context.gpus else (40, 8)
    iters = iters or iterations(context)
    opts = at(draw(context, "scenes", *images, (192, 144)))
    config = load_config(QUICKSTART, opts, iters=iters)
    options = {"save_interval": iters // 2, "log_iters": 1, "do_eval": True, **options}
    train(config, save_dir=str(context.folder / name), precision=precision, seed=0, **options)
    return read_lines(context.folder / name)


def iterations(context):
    """Iterations of the quick start's runs."""
    return 200 if context.gpus else 20


def check_quickstart(context, precision):
    """The loss falls, and the mIoU is that of float32."""
    lines = quickstart(context, precision, precision)
    iters = iterations(context)
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    tenth = iters // 10
    first, last = np.mean(losses[:tenth]), np.mean(losses[-tenth:])
    ratio, miou = float(last / first), lines[-1].get("miou")
    skipped = sum(line["kind"] == "skipped_step" for line in lines)
    passed = len(losses) == iters and not skipped and ratio <= MAX_LOSS_RATIO[iters]
    measured = f"loss {first:.2f} to {last:.2f}"
    bound = f"≤ {MAX_LOSS_RATIO[iters]:.0%} of the first"
    if iters in MIN_MIOU:
        minimum = MIN_MIOU[iters]
        if precision != "fp32":
            minimum = read_lines(context.folder / "fp32")[-1]["miou"] - MAX_MIOU_DROP
        passed = passed and miou >= minimum
        measured, bound = f"{measured}, mIoU {miou:.3f}", f"{bound}, mIoU ≥ {minimum:.3f}"
    details = {"losses": losses, "miou": miou, "skipped": skipped}
    return Result(bool(passed), measured, bound, details)


def check_resume(context):
    """Resumed from the middle of ``check_quickstart``'s run, the rest is the same."""
    iters = iterations(context)
    middle = context.folder / f"fp32/iter_{iters // 2}"
    lines = quickstart(context, "resumed", resume_model=str(middle))
    whole, resumed = (
        [line for line in run if line["kind"] == "train" and line["iteration"] > iters // 2]
        for run in (read_lines(context.folder / "fp32"), lines)
    )
    rates = [[line["lr"] for line in run] for run in (whole, resumed)]
    losses = [np.array([line["loss"] for line in run[:RESUME_STEPS]]) for run in (whole, resumed)]
    if len(whole) != len(resumed):
        return Result(False, f"{len(resumed)} steps", f"{len(whole)}")
    error = float(np.abs(losses[1] / losses[0] - 1).max())
    bound = RESUME_BOUND if context.gpus else 0.0
    passed, measured = error <= bound, f"losses differ by {error:.1e}"
    if rates[0] != rates[1]:
        passed, measured = False, f"{measured}, learning rates differ"
    if not context.gpus:
        files = [context.folder / run / f"iter_{iters}" / MODEL for run in ("fp32", "resumed")]
        weights = [read_saved_dict(file) for file in files]
        equal = all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
        passed, measured = passed and equal, f"{measured}, weights {'equal' if equal else 'differ'}"
    text = f"≤ {bound:.0e}" if bound else "equal"
    return Result(passed, measured, text, {"error": error})


def check_speed(context, variant, batch_size, precision):
    """Images per second, peak memory and the reader's share of the paper's recipe at 512x512."""
    count = 30 if context.gpus else (2 if variant == "B0" else 1)  # timed; as many before them
    root = draw(context, "photos", 16, 1, (683, 512))
    config = recipe(variant, *at(root))
    config.dic.update(iters=2 * count, batch_size=batch_size)
    folder = speed_folder(context, variant, batch_size, precision)
    train(
        config, save_dir=str(folder), precision=precision, save_interval=2 * count, log_iters=count
    )
    line = [line for line in read_lines(folder) if line["kind"] == "train"][-1]
    share, hours = line["reader_cost"] / line["batch_cost"], line["batch_cost"] / 3600 * PAPER_ITERS
    if context.gpus:
        memory = paddle.device.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    measured = f"{line['ips']:.2f} images/s, {memory / 1e9:.1f} GB, reader {share:.0%}"
    measured += f", 160k in {hours:,.0f} h"
    passed = share <= MAX_READER_SHARE and line["loss"] is not None
    details = {"images_per_second": line["ips"], "peak_bytes": memory, "reader_share": share}
    details.update(step_seconds=line["batch_cost"], hours_for_160k=hours)
    return Result(passed, measured, f"reader ≤ {MAX_READER_SHARE:.0%}", details)


def speed_folder(context, variant, batch_size, precision):
    """The folder of ``check_speed``'s run."""
    return context.folder / f"speed_{variant}_{batch_size}_{precision}"


def check_two_gpus(context):
    """The losses of three steps on two GPUs are those of one GPU with both batches."""
    root = draw(context, "scenes", 240, 40, (192, 144))
    losses = []
    for gpus in (1, 2):
        folder = context.folder / f"gpus_{gpus}"
        program = [sys.executable, "-m", "paddleseg_segformer", "train", "--config", QUICKSTART]
        program += ["--iters", "3", "--log_iters", "1", "--batch_size", str(8 // gpus)]
        program += ["--save_dir", str(folder), "--opts", *at(root)]
        program += ["model.dropout=0.0", "model.backbone.drop_path_rate=0.0"]
        launcher = [sys.executable, "-m", "paddle.distributed.launch", "--devices", "0,1"]
        launcher += ["--log_dir", str(folder / "log")]
        command = program if gpus == 1 else launcher + program
        subprocess.run(command, check=True, env=os.environ)
        losses.append([x["loss"] for x in read_lines(folder) if x["kind"] == "train"])
    error = float(np.abs(np.array(losses[1]) / np.array(losses[0]) - 1).max())
    bound = f"≤ {TWO_GPU_BOUND:.0e}"
    passed = error <= TWO_GPU_BOUND
    return Result(passed, f"losses differ by {error:.1e}", bound, {"losses": losses})
