"""The paper's own checkpoints, in PyTorch: whole models, and backbones trained on ImageNet."""

from .naming import BATCH_NORM, IMAGENET_CLASSIFIER, key_value_shape, rename, transpose_linears

NAME = "nvlabs"
EPSILON = None  # the paper's mix

_RULES = (
    (r"^decode_head\.", ""),
    (r"^linear_fuse\.conv\.", "linear_fuse._conv."),
    (r"^linear_fuse\.bn\.", "linear_fuse._batch_norm."),
    *BATCH_NORM,
)


def matches(state):
    """Whether a key-value projection is there in PyTorch's layout, one above the other."""
    rows, columns = key_value_shape(state)
    return rows > columns


def convert(state):
    """To our names and layout; ``conv_seg`` and the ImageNet classifier ``head`` go unused."""
    unused = (r"\.conv_seg\.", IMAGENET_CLASSIFIER)
    return transpose_linears(rename(state, _RULES, unused))
