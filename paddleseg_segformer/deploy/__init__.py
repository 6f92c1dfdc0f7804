"""The product: prediction and pictures."""

from .predictor import predict
from .protocol import Protocol
from .segmenter import Segmenter, load_model
from .visualise import colour_map, overlay

__all__ = ["Protocol", "Segmenter", "colour_map", "load_model", "overlay", "predict"]
