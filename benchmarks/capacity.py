"""Compute memory and a lower bound of the time of a training step on GPUs, from the model's shapes.

    python benchmarks/capacity.py --size 512

It lists the operators that run on a GPU, with their multiply-accumulates, the elements that they
read and write, and those that are kept for the backward pass. Nothing is run or measured. The time
is the sum over the operators of the longer of arithmetic and memory traffic at the card's published
peaks; the backward pass counts twice. It is a lower bound: no kernel reaches either peak, and
launches, which the GPU may wait for, are not counted. The images have 150 classes.
"""

import argparse
from typing import NamedTuple

from paddleseg_segformer.models import VARIANTS
from paddleseg_segformer.ops.cross_entropy import GROUP_SIZE

CLASSES, MLP_RATIO = 150, 4
LOSS_TENSORS = 3.3  # of a group of images at full size, as measured on a CPU
RESERVED = 1.5e9  # an allowance for the driver, workspaces of libraries, and rounding
BATCH_SIZES = (16, 8, 4, 2, 1)


class Card(NamedTuple):
    """A GPU's published peaks, dense."""

    memory: float  # bytes
    bandwidth: float  # bytes per second
    flops: dict  # per second, by precision


CARDS = {
    "RTX 4090, 24 GB": Card(24e9, 1.01e12, {"tf32": 83e12, "bf16": 165e12}),
    "A100, 40 GB": Card(40e9, 1.56e12, {"tf32": 156e12, "bf16": 312e12}),
    "H100, 80 GB": Card(80e9, 3.35e12, {"tf32": 495e12, "bf16": 989e12}),
    "H200, 141 GB": Card(141e9, 4.8e12, {"tf32": 495e12, "bf16": 989e12}),
}


class Operator(NamedTuple):
    """What an operator does with one image; float32 whatever the precision, or the precision's."""

    macs: int = 0
    moved_float32: int = 0  # elements read and written
    moved: int = 0
    saved_float32: int = 0  # elements kept for the backward pass
    saved: int = 0


def block(channels, length, reduced, heads, sr_ratio, fused):
    """Operators of a Transformer block; ``fused``: with FlashAttention, in half precision."""
    x, kv, hidden = length * channels, reduced * channels, MLP_RATIO * length * channels
    scores = heads * length * reduced
    norm = Operator(moved_float32=2 * x, moved=x, saved_float32=x, saved=x)
    residual = Operator(moved_float32=4 * x, moved=x)
    yield norm
    if sr_ratio > 1:
        yield Operator(kv * channels * sr_ratio**2, moved=x + 3 * kv)
        yield Operator(moved_float32=2 * kv, moved=kv, saved_float32=kv, saved=kv)
    yield Operator(x * channels, moved=4 * x, saved=x)  # queries
    yield Operator(2 * kv * channels, moved=7 * kv, saved=2 * kv)  # keys and values
    products = 2 * length * reduced * channels
    if fused:
        yield Operator(products, moved=2 * x + 2 * kv, saved_float32=heads * length)
    else:
        yield Operator(products, 4 * scores, 4 * x + 2 * kv, saved_float32=scores)
    yield Operator(x * channels, moved=4 * x, saved=x)  # projection
    yield residual
    yield norm
    yield Operator(x * hidden // length, moved=x + 3 * hidden, saved=hidden)  # fc1
    yield Operator(9 * hidden, moved=4 * hidden, saved=hidden)  # depthwise convolution
    yield Operator(moved=2 * hidden, saved=hidden)  # GELU
    yield Operator(x * hidden // length, moved=3 * x + hidden)  # fc2
    yield residual


def stage(variant, i, side, fused):
    """Operators of stage i's patch embedding and norm, and a list of those of each block."""
    channels, ratio = variant.embed_dims[i], variant.sr_ratios[i]
    stride, kernel = (4, 7) if i == 0 else (2, 3)
    in_channels = 3 if i == 0 else variant.embed_dims[i - 1]
    length = side**2
    x, inputs = length * channels, in_channels * length * stride**2
    outer = [
        # The map that it reads is saved by the stage before, except for the image.
        Operator(x * in_channels * kernel**2, moved=inputs + 5 * x, saved=inputs if i == 0 else 0),
        Operator(moved_float32=2 * x, saved_float32=x),  # its norm
        Operator(moved_float32=2 * x, moved=3 * x, saved_float32=x, saved=x),  # the stage's norm
    ]
    one = block(channels, length, (side // ratio) ** 2, variant.num_heads[i], ratio, fused)
    return outer, [list(one)] * variant.depths[i]


def head(variant, sides):
    """Operators of the decode head, from maps with these sides."""
    width, side = variant.decoder_width, sides[0]
    fused, logits = width * side**2, CLASSES * side**2
    for channels, smaller in zip(variant.embed_dims, sides):
        x = width * smaller**2
        yield Operator(x * channels, moved=channels * smaller**2 + x)
        if smaller != side:  # resized by two matrix products, and added
            middle = width * smaller * side
            yield Operator(side * (x + middle), moved=x + 2 * middle + 4 * fused)
    yield Operator(moved=5 * fused, saved=2 * fused)  # BatchNorm, ReLU
    # The loss keeps its gradient, of the logits' size.
    yield Operator(fused * CLASSES, 2 * logits, fused + 3 * logits, saved_float32=logits)


class Step(NamedTuple):
    """A training step: its operators outside of Transformer blocks, and those of each block."""

    outer: list
    blocks: list

    @property
    def operators(self):
        return [*self.outer, *(operator for one in self.blocks for operator in one)]


def training_step(variant, size, fused=False):
    """The ``Step`` for images of ``size`` x ``size``, a multiple of 32."""
    sides = [size // (4 << i) for i in range(4)]
    stages = [stage(variant, i, side, fused) for i, side in enumerate(sides)]
    outer = [operator for of_stage, _ in stages for operator in of_stage]
    blocks = [one for _, of_blocks in stages for one in of_blocks]
    return Step([*outer, *head(variant, sides)], blocks)


def saved_bytes(operators, precision):
    """Bytes of the tensors kept for the backward pass of one image."""
    return sum(4 * op.saved_float32 + item_size(precision) * op.saved for op in operators)


def item_size(precision):
    return 2 if precision == "bf16" else 4


def memory(variant, size, batch_size, precision, recompute=False):
    """Peak bytes: AdamW's state, tensors kept for the backward pass, and the loss's group."""
    step = training_step(variant, size, fused=precision == "bf16")
    kept = saved_bytes(step.outer, precision)
    if recompute:  # each block's input, and all that one block keeps
        kept += sum(4 * one[0].saved_float32 for one in step.blocks)
        kept += max(saved_bytes(one, precision) for one in step.blocks)
    else:
        kept += sum(saved_bytes(one, precision) for one in step.blocks)
    image = CLASSES * size**2
    group = LOSS_TENSORS * 4 * image * min(batch_size, max(1, GROUP_SIZE // image))
    bytes_per_parameter = 12 if precision == "fp32" else 14  # weights, moments, and half copies
    state = bytes_per_parameter * variant.params_millions * 1e6
    return state + kept * batch_size + group + RESERVED


def seconds(variant, size, batch_size, card, precision):
    """A lower bound of the time of a step."""
    of_image = 0
    for op in training_step(variant, size, fused=precision == "bf16").operators:
        moved = 4 * op.moved_float32 + item_size(precision) * op.moved
        of_image += max(2 * op.macs / card.flops[precision], moved / card.bandwidth)
    update = 28 * variant.params_millions * 1e6  # AdamW reads 4 tensors in float32 and writes 3
    return 3 * batch_size * of_image + update / card.bandwidth


def fit(variant, size, card, precision):
    """Images per micro-batch, and whether with recompute, for a batch of 16; None if none fit.

    The fewest micro-batches that fit a card; recompute, which is slower, only if none do without.
    """
    for recompute in (False, True):
        for batch_size in BATCH_SIZES:
            if memory(variant, size, batch_size, precision, recompute) <= card.memory:
                return batch_size, recompute
    return None


def memory_table(size):
    """Lines of a Markdown table."""
    columns = [(n, False) for n in BATCH_SIZES] + [(BATCH_SIZES[0], True)]
    titles = (f"{n}{', recompute' if recompute else ''} |" for n, recompute in columns)
    yield " ".join(["| GB, fp32 / bf16 |", *titles])
    yield "|---" * (1 + len(columns)) + "|"
    for name, variant in VARIANTS.items():
        row = [f"| {name} |"]
        for n, recompute in columns:
            used = (memory(variant, size, n, p, recompute) / 1e9 for p in ("fp32", "bf16"))
            row.append(" / ".join(f"{gigabytes:.1f}" for gigabytes in used) + " |")
        yield " ".join(row)


def time_table(size):
    """Lines of a Markdown table."""
    yield " ".join(["| Images/s, TF32 / bf16 |", *(f"{name} |" for name in CARDS)])
    yield "|---" * (1 + len(CARDS)) + "|"
    for name, variant in VARIANTS.items():
        row = [f"| {name} |"]
        for card in CARDS.values():
            row.append(" / ".join(rate(variant, size, card, p) for p in ("tf32", "bf16")) + " |")
        yield " ".join(row)


def rate(variant, size, card, precision):
    """Images per second, at most, and micro-batches of a batch of 16 if it takes several."""
    fitting = fit(variant, size, card, precision)
    if fitting is None:
        return "does not fit"
    batch, (images, recompute) = BATCH_SIZES[0], fitting
    text = f"{batch / seconds(variant, size, batch, card, precision):.0f}"
    parts = [f"{batch // images} x {images}"] if images < batch else []
    parts += ["recompute"] if recompute else []
    return f"{text} ({', '.join(parts)})" if parts else text


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="of the images, a multiple of 32")
    size = parser.parse_args().size
    for lines in (memory_table(size), time_table(size)):
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
