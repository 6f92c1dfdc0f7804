"""Exact, fast building blocks that know nothing of models."""

from .argmax import WindowLogits, label_map, probability_map
from .bias import add_bias
from .cross_entropy import upsampled_cross_entropy
from .memory_efficient import gelu_matmul, scale_samples
from .resize import linear_weights, resize_bilinear, resize_rows

__all__ = [
    "WindowLogits",
    "add_bias",
    "gelu_matmul",
    "label_map",
    "linear_weights",
    "probability_map",
    "resize_bilinear",
    "resize_rows",
    "scale_samples",
    "upsampled_cross_entropy",
]
