"""The product: prediction and pictures."""

from .inference import Protocol, load_model, segment
from .predictor import predict
from .visualise import colour_map, overlay

__all__ = ["Protocol", "colour_map", "load_model", "overlay", "predict", "segment"]
