"""The architecture of a checkpoint, inferred from the shapes of its tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .formats import BACKBONE


@dataclass(frozen=True)
class Architecture:
    """Sizes of a SegFormer, or of a backbone.

    The attributes are arguments of ``MixVisionTransformer`` and ``SegFormer``; those of the decode
    head are None for a backbone.
    """

    embed_dims: tuple[int, ...]
    depths: tuple[int, ...]
    embedding_dim: int | None = None
    stage_projection: str | None = None
    num_classes: int | None = None
    in_channels: int = 3

    @property
    def variant(self) -> str | None:
        """``"B0"`` to ``"B5"``, or None for another backbone."""
        # Not at the top: the models import this package, for their argument ``pretrained``.
        from ..models.mix_transformer import find_variant

        return find_variant(self.embed_dims, self.depths)

    def __str__(self):
        encoder = f"MiT-{self.variant}" if self.variant else f"MiT {self.embed_dims}, {self.depths}"
        if self.in_channels != 3:
            encoder += f" for {self.in_channels}-band images"
        if self.embedding_dim is None:
            return f"{encoder} (backbone)"
        return (
            f"SegFormer with {encoder}, embedding_dim {self.embedding_dim}, "
            f"stage_projection {self.stage_projection!r}, {self.num_classes} classes"
        )


def infer_architecture(state):
    """``Architecture`` of a state dict in PaddleSeg's names; None if encoder layers are missing."""
    shapes = {name.replace(BACKBONE, ""): value.shape for name, value in state.items()}
    try:
        embed_dims = tuple(shapes[f"patch_embed{i}.proj.weight"][0] for i in range(1, 5))
        depths = tuple(_depth(shapes, i) for i in range(1, 5))
        in_channels = shapes["patch_embed1.proj.weight"][1]
    except (KeyError, ValueError):
        return None
    if "linear_fuse._conv.weight" not in shapes or "linear_pred.weight" not in shapes:
        return Architecture(embed_dims, depths, in_channels=in_channels)
    stage_projection = "linear" if "linear_c1.proj.weight" in shapes else "conv_bn_relu"
    sizes = shapes["linear_fuse._conv.weight"][0], shapes["linear_pred.weight"][0]
    return Architecture(embed_dims, depths, sizes[0], stage_projection, sizes[1], in_channels)


def _depth(names, stage):
    numbers = (re.match(rf"block{stage}\.(\d+)\.", name) for name in names)
    return 1 + max(int(number[1]) for number in numbers if number)


_BLOCK = ["norm1", "norm2", "attn.q", "attn.kv", "attn.proj"]
_BLOCK += ["mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
_SEQUENCE_REDUCTION = ["attn.sr", "attn.norm"]  # not in stage 4, whose reduction ratio is 1


def missing_layers(architecture, state):
    """The layers of an architecture without a weight in a state dict in PaddleSeg's names."""
    layers = []
    for i, depth in enumerate(architecture.depths, 1):
        layers += [f"patch_embed{i}.proj", f"patch_embed{i}.norm", f"norm{i}"]
        block = _BLOCK if i == 4 else _BLOCK + _SEQUENCE_REDUCTION
        layers += [f"block{i}.{j}.{layer}" for j in range(depth) for layer in block]
    if architecture.embedding_dim is not None:
        is_linear = architecture.stage_projection == "linear"
        projection = ("proj",) if is_linear else ("_conv", "_batch_norm")
        layers = [BACKBONE + layer for layer in layers]
        layers += [f"linear_c{i}.{layer}" for i in range(1, 5) for layer in projection]
        layers += ["linear_fuse._conv", "linear_fuse._batch_norm", "linear_pred"]
    return [layer for layer in layers if f"{layer}.weight" not in state]
