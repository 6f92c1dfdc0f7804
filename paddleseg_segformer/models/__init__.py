"""The model: backbone, decode head, loss."""

from .losses import CrossEntropyLoss
from .mix_transformer import (
    MIN_IMAGE_SIZE,
    VARIANTS,
    MixVisionTransformer,
    MixVisionTransformer_B0,
    MixVisionTransformer_B1,
    MixVisionTransformer_B2,
    MixVisionTransformer_B3,
    MixVisionTransformer_B4,
    MixVisionTransformer_B5,
)
from .segformer import SegFormer

__all__ = [
    "MIN_IMAGE_SIZE",
    "VARIANTS",
    "CrossEntropyLoss",
    "MixVisionTransformer",
    "MixVisionTransformer_B0",
    "MixVisionTransformer_B1",
    "MixVisionTransformer_B2",
    "MixVisionTransformer_B3",
    "MixVisionTransformer_B4",
    "MixVisionTransformer_B5",
    "SegFormer",
]
