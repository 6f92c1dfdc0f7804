"""The paper's own checkpoints, in PyTorch: whole models, and backbones trained on ImageNet."""

from .naming import BATCH_NORM, IMAGENET_CLASSIFIER, rename, transpose_linears

NAME = "nvlabs"
EPSILON = None  # the paper's mix

_RULES = (
    (r"^decode_head\.", ""),
    (r"^linear_fuse\.conv\.", "linear_fuse._conv."),
    (r"^linear_fuse\.bn\.", "linear_fuse._batch_norm."),
    *BATCH_NORM,
)


def recognises(state):
    """Whether a key-value projection is there in PyTorch's layout, one above the other."""
    key_value = state.get("block1.0.attn.kv.weight", state.get("backbone.block1.0.attn.kv.weight"))
    return key_value is not None and key_value.shape[0] > key_value.shape[1]


def convert(state):
    """To our names and layout; ``conv_seg`` and the ImageNet classifier ``head`` go unused."""
    unused = (r"\.conv_seg\.", IMAGENET_CLASSIFIER)
    return transpose_linears(rename(state, _RULES, unused))
