"""PaddleViT's SegFormer: mmsegmentation's structure in Paddle's layout."""

from .mmseg import STRUCTURE
from .naming import conv1x1_to_linear, rename

NAME = "paddlevit"
EPSILON = 1e-5

_RULES = (
    *STRUCTURE,
    (r"\.ffn\.pe_conv\.", ".mlp.dwconv.dwconv."),
    (r"\.ffn\.(fc[12])\.", r".mlp.\1."),
)


def matches(state):
    """Whether the Mix-FFN's depthwise convolution has PaddleViT's name."""
    return any(".ffn.pe_conv." in name for name in state)


def convert(state):
    """To our names and layout."""
    return conv1x1_to_linear(rename(state, _RULES))
