"""The SegFormer variants, and recognizing one by the tensors of a state dict."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .formats import BACKBONE

_SMALL, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
SIZES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "B0": (_SMALL, (2, 2, 2, 2)),
    "B1": (_WIDE, (2, 2, 2, 2)),
    "B2": (_WIDE, (3, 4, 6, 3)),
    "B3": (_WIDE, (3, 4, 18, 3)),
    "B4": (_WIDE, (3, 8, 27, 3)),
    "B5": (_WIDE, (3, 6, 40, 3)),
}
"""Channels and depths of MiT's four stages, by size: paper, table 6."""


@dataclass(frozen=True)
class Architecture:
    """The architecture that the shapes of a state dict imply.

    Attributes:
        channels, depths: Channels and blocks of the encoder's four stages.
        width: ``embedding_dim`` of the decode head; None for a backbone, like the next two.
        stage_projection: ``"linear"`` or ``"conv_bn_relu"``.
        classes: Number of classes.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    width: int | None = None
    stage_projection: str | None = None
    classes: int | None = None

    @property
    def size(self) -> str | None:
        """``"B0"`` to ``"B5"``, or None for another encoder."""
        for size, stages in SIZES.items():
            if stages == (self.channels, self.depths):
                return size
        return None

    def __str__(self):
        encoder = f"MiT-{self.size}" if self.size else f"MiT {self.channels}, {self.depths}"
        if self.width is None:
            return f"{encoder} (backbone)"
        return (
            f"SegFormer with {encoder}, embedding_dim {self.width}, "
            f"stage_projection {self.stage_projection!r}, {self.classes} classes"
        )


def infer_architecture(state):
    """The architecture of a state dict in PaddleSeg's names, of a whole model or a backbone.

    Returns:
        ``Architecture``, or None if layers of the encoder are missing.
    """
    shapes = {name.replace(BACKBONE, ""): value.shape for name, value in state.items()}
    try:
        channels = tuple(shapes[f"patch_embed{i}.proj.weight"][0] for i in range(1, 5))
        depths = tuple(_depth(shapes, i) for i in range(1, 5))
    except (KeyError, ValueError):
        return None
    if "linear_fuse._conv.weight" not in shapes or "linear_pred.weight" not in shapes:
        return Architecture(channels, depths)
    return Architecture(
        channels,
        depths,
        width=shapes["linear_fuse._conv.weight"][0],
        stage_projection="linear" if "linear_c1.proj.weight" in shapes else "conv_bn_relu",
        classes=shapes["linear_pred.weight"][0],
    )


def _depth(names, stage):
    numbers = (re.match(rf"block{stage}\.(\d+)\.", name) for name in names)
    return 1 + max(int(number[1]) for number in numbers if number)


_BLOCK = ("norm1", "norm2", "attn.q", "attn.kv", "attn.proj")
_BLOCK += ("mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2")
_SEQUENCE_REDUCTION = ("attn.sr", "attn.norm")  # not in stage 4, whose reduction ratio is 1


def missing_layers(architecture, state):
    """The layers of an architecture without a weight in a state dict in PaddleSeg's names."""
    layers = []
    for i, depth in enumerate(architecture.depths, 1):
        layers += [f"patch_embed{i}.proj", f"patch_embed{i}.norm", f"norm{i}"]
        block = _BLOCK if i == 4 else (*_BLOCK, *_SEQUENCE_REDUCTION)
        layers += [f"block{i}.{j}.{layer}" for j in range(depth) for layer in block]
    if architecture.width is not None:
        is_linear = architecture.stage_projection == "linear"
        projection = ("proj",) if is_linear else ("_conv", "_batch_norm")
        layers = [BACKBONE + layer for layer in layers]
        layers += [f"linear_c{i}.{layer}" for i in range(1, 5) for layer in projection]
        layers += ["linear_fuse._conv", "linear_fuse._batch_norm", "linear_pred"]
    return [layer for layer in layers if f"{layer}.weight" not in state]
