"""State dict formats of the SegFormer implementations, and their conversion to PaddleSeg's.

A state dict maps names to NumPy arrays. The target has PaddleSeg's names and Paddle's layout:
linear weights are [in, out], and the key-value projection is one linear layer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import gt, lt

import numpy as np

StateDict = Mapping[str, np.ndarray]

BACKBONE = "backbone."
IMAGENET_CLASSIFIER = r"^head\.(weight|bias)$"  # of ImageNet-pretrained backbones


@dataclass(frozen=True)
class CheckpointFormat:
    """A state dict format.

    Attributes:
        name: The implementation's name.
        norm_epsilon: LayerNorm epsilon of that implementation; None for the paper's, which differs
            between layers.
        matches: Whether a state dict is in this format.
        convert: From a state dict in this format to a new one in PaddleSeg's. Raises KeyError,
            ValueError or IndexError if tensors are missing or have wrong shapes.
    """

    name: str
    norm_epsilon: float | None
    matches: Callable[[StateDict], bool]
    convert: Callable[[StateDict], dict[str, np.ndarray]]


def rename(state, rules, unused=()):
    """A new state dict with other names.

    Args:
        state: Arrays by name.
        rules: (regular expression, replacement) pairs, all applied in this order.
        unused: Regular expressions of the names to drop.
    """
    unused = (r"\.num_batches_tracked$", *unused)
    renamed = {}
    for name, value in state.items():
        if any(re.search(pattern, name) for pattern in unused):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def per_stage(*rules):
    """Expand rules for the four stages; {} is 0 to 3 in the pattern, 1 to 4 in the replacement."""
    return tuple(
        (pattern.format(i), replacement.format(i + 1))
        for i in range(4)
        for pattern, replacement in rules
    )


def transpose_linears(state):
    """Transpose linear weights from PyTorch's [out, in] to Paddle's [in, out]."""
    return {name: value.T if value.ndim == 2 else value for name, value in state.items()}


def conv1x1_to_linear(state):
    """Turn the 1x1 convolutions of Mix-FFNs, [out, in, 1, 1], into linear weights [in, out]."""
    fc = re.compile(r"\.mlp\.fc[12]\.weight$")
    return {n: v[:, :, 0, 0].T if fc.search(n) else v for n, v in state.items()}


def has_name(part):
    """A condition: whether the name of a tensor contains ``part``."""
    return lambda state: any(part in name for name in state)


def kv_shape(state):
    """Shape of the first key-value projection in PaddleSeg's and NVlabs's names, else (0, 0)."""
    name = "block1.0.attn.kv.weight"
    kv = state.get(name, state.get(BACKBONE + name))
    rows, columns = (0, 0) if kv is None else kv.shape  # ValueError if it is not a matrix
    return rows, columns


def from_paddleseg(state):
    """Drop the ImageNet classifier of a backbone; a whole model may have a layer named head."""
    is_backbone = not any(name.startswith(BACKBONE) for name in state)
    return rename(state, (), unused=(IMAGENET_CLASSIFIER,) if is_backbone else ())


BATCH_NORM_RULES = ((r"\.running_mean$", "._mean"), (r"\.running_var$", "._variance"))

NVLABS_RULES = (
    (r"^decode_head\.", ""),
    (r"^linear_fuse\.conv\.", "linear_fuse._conv."),
    (r"^linear_fuse\.bn\.", "linear_fuse._batch_norm."),
    *BATCH_NORM_RULES,
)


def from_nvlabs(state):
    """Drop ``conv_seg``, which NVlabs's head never uses, and the ImageNet classifier."""
    unused = (r"\.conv_seg\.", IMAGENET_CLASSIFIER)
    return transpose_linears(rename(state, NVLABS_RULES, unused))


# save_pretrained writes the first name of each pair. The model's own state_dict() has the second
# since transformers 5, so that torch.save of it does too.
HUGGINGFACE_RULES = (
    *per_stage(
        (r"^(segformer\.)?encoder\.patch_embeddings\.{}\.", "backbone.patch_embed{}."),
        (r"^(segformer\.)?stages\.{}\.patch_embeddings\.", "backbone.patch_embed{}."),
        (r"^(segformer\.)?encoder\.block\.{}\.", "backbone.block{}."),
        (r"^(segformer\.)?stages\.{}\.blocks\.", "backbone.block{}."),
        (r"^(segformer\.)?encoder\.layer_norm\.{}\.", "backbone.norm{}."),
        (r"^(segformer\.)?stages\.{}\.layer_norm\.", "backbone.norm{}."),
        (r"^decode_head\.linear_(c|projections)\.{}\.", "linear_c{}."),
    ),
    (r"\.attention\.self\.([qkv])\w+\.", r".attn.\1."),
    (r"\.attention\.([qkv])_proj\.", r".attn.\1."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(self\.sr|sequence_reduction\.sequence_reduction)\.", ".attn.sr."),
    (r"\.attention\.(self|sequence_reduction)\.layer_norm\.", ".attn.norm."),
    (r"\.(layer_norm_1|layernorm_before)\.", ".norm1."),
    (r"\.(layer_norm_2|layernorm_after)\.", ".norm2."),
    (r"(patch_embed\d)\.layer_norm\.", r"\1.norm."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"^decode_head\.linear_fuse\.", "linear_fuse._conv."),
    (r"^decode_head\.batch_norm\.", "linear_fuse._batch_norm."),
    (r"^decode_head\.classifier\.", "linear_pred."),
    *BATCH_NORM_RULES,
)


def from_huggingface(state):
    """Join key and value, and drop the ImageNet classifier."""
    state = rename(state, HUGGINGFACE_RULES, unused=(r"^classifier\.",))
    for name in [name for name in state if ".attn.k." in name]:
        key, value = state.pop(name), state.pop(name.replace(".k.", ".v."))
        state[name.replace(".k.", ".kv.")] = np.concatenate([key, value])
    return transpose_linears(state)


# Shared by mmsegmentation and PaddleViT, with convolution, BatchNorm and ReLU in the decode head.
OPENMMLAB_RULES = (
    *per_stage(
        (r"^(backbone\.)?layers\.{}\.0\.projection\.", "backbone.patch_embed{}.proj."),
        (r"^(backbone\.)?layers\.{}\.0\.norm\.", "backbone.patch_embed{}.norm."),
        (r"^(backbone\.)?layers\.{}\.1\.", "backbone.block{}."),
        (r"^(backbone\.)?layers\.{}\.2\.", "backbone.norm{}."),
        (r"^decode_head\.convs\.{}\.", "linear_c{}."),
    ),
    (r"^decode_head\.fusion_conv\.", "linear_fuse."),
    (r"^(linear_\w+)\.conv\.", r"\1._conv."),
    (r"^(linear_\w+)\.bn\.", r"\1._batch_norm."),
    (r"^decode_head\.conv_seg\.", "linear_pred."),
)

MMSEG_RULES = (
    *OPENMMLAB_RULES,
    (r"\.attn\.attn\.in_proj_(weight|bias)$", r".attn.in_proj.\1"),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
    *BATCH_NORM_RULES,
)


def from_mmseg(state):
    """Split the fused projection of PyTorch's multi-head attention into query and key-value."""
    state = rename(state, MMSEG_RULES)
    for name in [name for name in state if ".attn.in_proj." in name]:
        query, key, value = np.split(state.pop(name), 3)
        state[name.replace(".in_proj.", ".q.")] = query
        state[name.replace(".in_proj.", ".kv.")] = np.concatenate([key, value])
    return conv1x1_to_linear(transpose_linears(state))


PADDLEVIT_RULES = (
    *OPENMMLAB_RULES,
    (r"\.ffn\.pe_conv\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.(fc[12])\.", r".mlp.\1."),
)


def from_paddlevit(state):
    """mmsegmentation's structure in Paddle's layout, with separate query and key-value."""
    return conv1x1_to_linear(rename(state, PADDLEVIT_RULES))


# PaddleSeg's key-value projection is [dim, 2 dim], and NVlabs's of the same name [2 dim, dim].
PADDLESEG = CheckpointFormat("paddleseg", None, lambda state: lt(*kv_shape(state)), from_paddleseg)

# In the order of recognition.
FORMATS = (
    PADDLESEG,
    CheckpointFormat("nvlabs", None, lambda state: gt(*kv_shape(state)), from_nvlabs),
    CheckpointFormat("huggingface", 1e-5, has_name(".patch_embeddings."), from_huggingface),
    CheckpointFormat("mmseg", 1e-6, has_name(".attn.attn.in_proj_weight"), from_mmseg),
    CheckpointFormat("paddlevit", 1e-5, has_name(".ffn.pe_conv."), from_paddlevit),
)
