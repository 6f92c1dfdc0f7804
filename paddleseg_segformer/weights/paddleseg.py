"""PaddleSeg's SegFormer, and ours: the names and layout that everything else is turned into."""

from .naming import BACKBONE, IMAGENET_CLASSIFIER, key_value_shape, rename

NAME = "paddleseg"
EPSILON = None  # the paper's mix


def matches(state):
    """Whether these are PaddleSeg's names in Paddle's layout, where key and value lie side by side.

    NVlabs's ImageNet files have the same names in PyTorch's layout.
    """
    rows, columns = key_value_shape(state)
    return rows < columns


def convert(state):
    """Leave out the ImageNet classifier of a backbone alone: a whole model may have a ``head``."""
    whole = any(key.startswith(BACKBONE) for key in state)
    return rename(state, (), unused=() if whole else (IMAGENET_CLASSIFIER,))
