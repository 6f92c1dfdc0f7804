"""mmsegmentation 1.x; PaddleViT has the same structure."""

import numpy as np

from .naming import BATCH_NORM, conv1x1_to_linear, of_stages, rename, transpose_linears

NAME = "mmseg"
EPSILON = 1e-6

# Shared with PaddleViT: stages, and the head with convolution, BatchNorm and ReLU for each stage.
STRUCTURE = (
    *of_stages(
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
_RULES = (
    *STRUCTURE,
    (r"\.attn\.attn\.in_proj_(weight|bias)$", r".attn.in_proj.\1"),
    (r"\.attn\.attn\.out_proj\.", ".attn.proj."),
    (r"\.ffn\.layers\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.layers\.4\.", ".mlp.fc2."),
    *BATCH_NORM,
)


def matches(state):
    """Whether query, key and value are fused as in PyTorch's multi-head attention."""
    return any(name.endswith(".attn.attn.in_proj_weight") for name in state)


def convert(state):
    """To our names and layout."""
    state = rename(state, _RULES)
    for name in [name for name in state if ".attn.in_proj." in name]:
        query, key, value = np.split(state.pop(name), 3)
        state[name.replace(".in_proj.", ".q.")] = query
        state[name.replace(".in_proj.", ".kv.")] = np.concatenate([key, value])
    return conv1x1_to_linear(transpose_linears(state))
