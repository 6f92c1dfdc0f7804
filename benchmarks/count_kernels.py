"""Count the kernel calls and host synchronizations of a training step on a GPU, without one.

    python benchmarks/count_kernels.py --backbones B0 B2 --batch_sizes 2 16
    python benchmarks/count_kernels.py --backbones B0 --batch_sizes 2 --operators

It forces the branches for GPUs on a CPU and counts calls with Paddle's profiler, for this project
and for PaddleSeg's model, loss and training loop, in float32 with images of 64 x 64. Views change
only a tensor's shape and strides. Reads copy a tensor to the host, for which a GPU must have
finished its work; all but two of PaddleSeg's are of shapes, which are on the host already. Not
counted are what a kernel launches itself (AdamW's for all tensors, 60 tensors at a time) and copies
that make a view contiguous. Uploads are given for images of 512 x 512.
"""

import argparse
import collections
import contextlib
import importlib
import json
import tempfile
from functools import wraps
from pathlib import Path
from unittest import mock

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import profiler

from paddleseg_segformer import CrossEntropyLoss, SegFormer
from paddleseg_segformer.engine import train_step
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.models import VARIANTS
from paddleseg_segformer.ops import cross_entropy

CLASSES, SIZE, IGNORE_INDEX = 150, 64, 255
# Operators that only change a tensor's shape and strides, and launch nothing.
VIEWS = {"flatten", "reshape", "slice", "split", "split_with_num", "squeeze", "transpose"}
VIEWS |= {"unsqueeze", "flatten_grad", "reshape_grad", "squeeze_grad", "transpose_grad"}
VIEWS |= {"unbind", "unsqueeze_grad"}
READS = ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__array__")
PHASES = ("forward", "loss and checks", "backward", "norm", "optimizer")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["B0", "B2"], choices=VARIANTS)
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[2, 16])
    parser.add_argument("--operators", action="store_true", help="list the calls by operator")
    args = parser.parse_args()
    columns = (*PHASES, "sum", "views", "reads", "bytes read", "MB uploaded")
    print(f"{'':24}", *(f"{name:>16}" for name in columns), sep="")
    for backbone in args.backbones:
        for batch_size in args.batch_sizes:
            for name, build in (("ours", ours), ("paddleseg", paddleseg)):
                counts = count(build, backbone, batch_size)
                row = [counts[phase] for phase in PHASES]
                row += [sum(row), counts["views"], counts["reads"], counts["bytes read"]]
                row += [round(counts["bytes uploaded"] * (512 / SIZE) ** 2 / 1e6, 1)]
                label = f"{name} {backbone}, batch {batch_size}"
                print(f"{label:24}", *(f"{value:16}" for value in row), sep="", flush=True)
                for phase in PHASES if args.operators else ():
                    calls = {key[1]: n for key, n in counts.items() if key[0] == phase and n}
                    calls = sorted(calls.items(), key=lambda call: -call[1])
                    print(f"  {phase}:", ", ".join(f"{name} {n}" for name, n in calls))


def ours(backbone):
    """Model, optimizer, and function of a batch of arrays that does one step."""
    model, optimizer = with_optimizer(SegFormer(CLASSES, backbone))
    losses = {"types": [CrossEntropyLoss()], "coef": [1.0]}
    step = train_step.TrainStep(model, losses, optimizer, TrainOptions(), None)
    return model, optimizer, lambda batch: step([to_device(batch)], 1)


def paddleseg(backbone):
    """The same for PaddleSeg, which reads the loss and its terms in each step."""
    backbones = importlib.import_module("paddleseg.models.backbones.mix_transformer")
    segformer = importlib.import_module("paddleseg.models.segformer")
    backbone_layer = getattr(backbones, f"MixVisionTransformer_{backbone}")()
    width = VARIANTS[backbone].decoder_width
    model, optimizer = with_optimizer(segformer.SegFormer(CLASSES, backbone_layer, width))

    def step(batch):
        batch = to_device(batch)
        logits = model(batch["img"])[0].transpose([0, 2, 3, 1])
        labels = batch["label"].astype("int64")
        # Without the last line of PaddleSeg's loss, which crashes on Paddle 3.
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none").mean()
        loss.backward()
        optimizer.step()
        model.clear_gradients()
        return float(loss), loss.numpy()

    return model, optimizer, step


def with_optimizer(model):
    model.train()
    rate = paddle.optimizer.lr.PolynomialDecay(6e-5, 160000)
    return model, paddle.optimizer.AdamW(rate, parameters=model.parameters(), weight_decay=0.01)


def to_device(batch):
    return {name: paddle.to_tensor(array) for name, array in batch.items()}


def count(build, backbone, batch_size):
    """Counts for the second step: of kernel calls by phase, and by (phase, operator), of views, of
    reads and their bytes, and of the bytes uploaded; ``build(backbone)`` is ``ours`` or similar."""
    rng = np.random.default_rng(0)
    batch = {
        "img": rng.normal(size=[batch_size, 3, SIZE, SIZE]).astype("float32"),
        "label": rng.integers(0, CLASSES, [batch_size, SIZE, SIZE]).astype("uint8"),
    }
    counts = collections.Counter()
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        place = paddle.base.core.Place
        stack.enter_context(mock.patch.object(place, "is_cpu_place", lambda self: False))
        model, optimizer, step = build(backbone)
        for owner, name, phase in (
            (model, "forward", "forward"),
            (paddle.Tensor, "backward", "backward"),
            (train_step, "gradient_norm", "norm"),
            (optimizer, "step", "optimizer"),
        ):
            stack.enter_context(mock.patch.object(owner, name, marked(getattr(owner, name), phase)))
        # Groups of as many images as at 512 x 512.
        group_size = cross_entropy.GROUP_SIZE * SIZE**2 // 512**2
        stack.enter_context(mock.patch.object(cross_entropy, "GROUP_SIZE", group_size))
        # With it, F.linear of Paddle 3.3.1 adds the bias in the same call.
        stack.enter_context(mock.patch.object(paddle, "is_compiled_with_cuda", lambda: True))
        step(batch)  # creates the optimizer's state
        count_reads(stack, counts)
        count_uploads(stack, counts)
        trace = Path(folder) / "trace.json"
        cpu = [profiler.ProfilerTarget.CPU]
        with profiler.Profiler(targets=cpu, on_trace_ready=lambda p: p.export(str(trace), "json")):
            step(batch)
        add_kernels(json.loads(trace.read_text())["traceEvents"], counts)
    return counts


def marked(function, phase):
    """``function``, marked in the trace as a phase of the step."""

    @wraps(function)
    def run(*args, **options):
        with profiler.RecordEvent(f"phase {phase}"):
            return function(*args, **options)

    return run


def count_reads(stack, counts):
    """Count the calls that copy a tensor to the host; one of them may call another."""
    depth = 0

    def counted(function):
        @wraps(function)
        def run(tensor, *args, **options):
            nonlocal depth
            if depth == 0:
                counts["reads"] += 1
                counts["bytes read"] += tensor.size * tensor.element_size()
            depth += 1
            try:
                return function(tensor, *args, **options)
            finally:
                depth -= 1

        return run

    for name in READS:
        patch = mock.patch.object(paddle.Tensor, name, counted(getattr(paddle.Tensor, name)))
        stack.enter_context(patch)


def count_uploads(stack, counts):
    """Count the bytes of the arrays of which tensors are made."""
    to_tensor = paddle.to_tensor

    def counted(data, *args, **options):
        tensor = to_tensor(data, *args, **options)
        counts["bytes uploaded"] += tensor.size * tensor.element_size()
        return tensor

    stack.enter_context(mock.patch.object(paddle, "to_tensor", counted))


def add_kernels(events, counts):
    """Add the kernel calls of a Chrome trace to ``counts``, by phase and operator."""
    events = [event for event in events if event.get("ph") == "X"]
    phases = []
    for event in events:
        if event["name"].startswith("phase "):
            phase = event["name"][len("phase ") :].split("[")[0]
            phases.append((event["ts"], event["ts"] + event["dur"], phase))
    for event in events:
        if event["cat"] == "DygraphKernelLaunch":
            inside = (name for start, end, name in phases if start <= event["ts"] <= end)
            phase, name = next(inside, "loss and checks"), event["name"].split(" kernel launch")[0]
            counts[phase if name not in VIEWS else "views"] += 1
            counts[phase, name] += name not in VIEWS


if __name__ == "__main__":
    main()
