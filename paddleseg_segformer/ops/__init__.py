"""Exact, fast building blocks that know nothing of models."""

from .bias import add_bias
from .cross_entropy import upsampled_cross_entropy
from .label_map import Part, label_map
from .resize import linear_weights, resize_bilinear, resize_rows

__all__ = [
    "Part",
    "add_bias",
    "label_map",
    "linear_weights",
    "resize_bilinear",
    "resize_rows",
    "upsampled_cross_entropy",
]
