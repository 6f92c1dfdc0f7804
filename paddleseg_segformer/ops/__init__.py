"""Exact, fast building blocks that know nothing of models."""

from .bias import add_bias
from .cross_entropy import upsampled_cross_entropy
from .frugal import gelu_product, scale_samples
from .label_map import Part, label_map, probability_map
from .resize import linear_weights, resize_bilinear, resize_rows

__all__ = [
    "Part",
    "add_bias",
    "gelu_product",
    "label_map",
    "linear_weights",
    "probability_map",
    "resize_bilinear",
    "resize_rows",
    "scale_samples",
    "upsampled_cross_entropy",
]
