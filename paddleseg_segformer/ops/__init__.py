"""Fast building blocks of the model, its loss and its label maps; independent of any model.

In Paddle 3.3, a second backward pass through the same graph (``retain_graph``) crashes the process.
"""

from .argmax import WindowLogits, channels_last, label_map, probability_map
from .attention import scaled_dot_product_attention
from .channel_tables import ChannelTables
from .cross_entropy import upsampled_cross_entropy
from .layers import (
    Conv2D,
    DropoutConv1x1,
    DropPath,
    GeluLinear,
    Linear,
    LinearToMap,
    drop_path_factors,
)
from .parallel_samples import parallel_samples
from .resize import linear_weights, resize_and_sum, resize_bilinear, resize_rows
from .rows import map_rows

__all__ = [
    "ChannelTables",
    "Conv2D",
    "DropPath",
    "DropoutConv1x1",
    "GeluLinear",
    "Linear",
    "LinearToMap",
    "WindowLogits",
    "channels_last",
    "drop_path_factors",
    "label_map",
    "linear_weights",
    "map_rows",
    "parallel_samples",
    "probability_map",
    "resize_and_sum",
    "resize_bilinear",
    "resize_rows",
    "scaled_dot_product_attention",
    "upsampled_cross_entropy",
]
