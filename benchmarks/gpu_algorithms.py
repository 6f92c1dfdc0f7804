"""Time three of this package's algorithms on a GPU, in PyTorch, beside what they replace.

Evidence for the algorithms, where a GPU with PyTorch is at hand and none with Paddle: the decode
head's resize, the folded decode head, and the loss in groups of images. Paddle's kernels differ.
"""

import itertools
import sys
from functools import cache, partial

import torch
import torch.nn.functional as F

ROUNDS = 20


def milliseconds(runs):
    """The median time of each of ``runs``, functions by name, which take turns."""
    times = {name: [] for name in runs}
    for _ in range(ROUNDS + 3):
        for name, run in runs.items():
            events = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            events[0].record()
            run()
            events[1].record()
            torch.cuda.synchronize()
            times[name].append(events[0].elapsed_time(events[1]))
    return {name: sorted(values[3:])[ROUNDS // 2] for name, values in times.items()}


@cache
def resize_weights(source, target, dtype):
    """The matrix ``[target, source]`` of a bilinear resize along one axis."""
    rows = F.interpolate(torch.eye(source)[None], target, mode="linear")
    return rows[0].T.contiguous().to("cuda", dtype)


def operator(x):
    return F.interpolate(x, (128, 128), mode="bilinear")


def products(x):
    if x.shape[2:] == (128, 128):
        return x
    rows, columns = (resize_weights(side, 128, x.dtype) for side in x.shape[2:])
    return rows @ (x @ columns.T)


def compare_resizes():
    print("resize of 16 maps of 256 channels to 128 x 128, forward and backward, bf16, and the")
    print("gradient's distance from the exact one rounded to bf16")
    for side in (16, 32, 64):
        x = torch.randn(16, 256, side, side, device="cuda", dtype=torch.bfloat16)
        x.requires_grad_()
        upstream = torch.randn(16, 256, 128, 128, device="cuda", dtype=torch.bfloat16)
        ways = {
            "operator in float32, with casts": lambda x: operator(x.float()).to(x.dtype),
            "operator in bf16": operator,
            "products in bf16": products,
        }
        exact = torch.autograd.grad(products(x.double()), x, upstream.double())[0]
        runs = {
            name: lambda way=way, x=x, g=upstream: torch.autograd.grad(way(x), x, g)[0]
            for name, way in ways.items()
        }
        for name, value in milliseconds(runs).items():
            error = (runs[name]() - exact).norm() / exact.norm()
            print(f"  {side:3} -> 128  {name:32} {value:6.2f} ms, gradient error {error:.2%}")


def compare_heads():
    print("decode head up to the fused map, 16 images of 512 x 512, forward and backward")
    variants = {"B0": ((32, 64, 160, 256), 256), "B2": ((64, 128, 320, 512), 768)}
    for (name, (channels, width)), dtype in itertools.product(
        variants.items(), (torch.float32, torch.bfloat16)
    ):
        options = {"device": "cuda", "dtype": dtype, "requires_grad": True}
        maps = [torch.randn(16, c, 128 >> i, 128 >> i, **options) for i, c in enumerate(channels)]
        linear = [torch.randn(width, c, 1, 1, **options) for c in channels]
        fuse = torch.randn(width, 4 * width, 1, 1, **options)
        inputs = [*maps, *linear, fuse]

        def usual(maps=maps, linear=linear, fuse=fuse):
            resized = [operator(F.conv2d(x, weight)) for x, weight in zip(maps, linear)]
            return F.conv2d(torch.cat(resized, 1), fuse)

        def folded(resize, maps=maps, linear=linear, fuse=fuse):
            parts = zip(maps, linear, fuse.chunk(4, 1))
            return sum(
                resize(F.conv2d(x, (a.flatten(1) @ w.flatten(1))[:, :, None, None]))
                for x, w, a in parts
            )

        upstream = torch.ones_like(usual())
        runs = {
            kind: lambda head=head, x=inputs, g=upstream: torch.autograd.grad(head(), x, g)
            for kind, head in (
                ("as published", usual),
                ("folded", partial(folded, operator)),
                ("folded, resized by products", partial(folded, products)),
            )
        }
        shown = ", ".join(f"{kind} {value:.2f} ms" for kind, value in milliseconds(runs).items())
        print(f"  {name}, {dtype}: {shown}")


def compare_losses():
    print("resize and cross-entropy of 16 x 150 maps of 128 to 512, float32, with gradient")
    logits = torch.randn(16, 150, 128, 128, device="cuda")
    labels = torch.randint(0, 150, (16, 512, 512), device="cuda")

    def loss(group):
        for images, targets in zip(logits.split(group), labels.split(group)):
            images = images.detach().requires_grad_()
            full = F.interpolate(images, (512, 512), mode="bilinear")
            torch.autograd.grad(F.cross_entropy(full, targets, reduction="sum"), images)

    for group in (1, 2, 4, 8, 16):
        torch.cuda.reset_peak_memory_stats()
        (value,) = milliseconds({"loss": lambda group=group: loss(group)}).values()
        peak = torch.cuda.max_memory_allocated() / 2**30
        print(f"  groups of {group:2}: {value:6.1f} ms, peak {peak:.1f} GiB")


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("gpu_algorithms.py: needs an NVIDIA GPU and PyTorch's build for it")
    print(torch.cuda.get_device_name(), "PyTorch", torch.__version__)
    compare_resizes()
    compare_heads()
    compare_losses()
