"""The product: prediction, pictures, and graphs for other programs."""

from .export import export
from .files import predict
from .graph import OUTPUT_OPS
from .predictor import Prediction, Predictor
from .protocol import Protocol
from .runtimes import RUNTIMES
from .segmenter import Segmenter, load_model
from .visualise import colour_map, overlay

__all__ = [
    "OUTPUT_OPS",
    "RUNTIMES",
    "Prediction",
    "Predictor",
    "Protocol",
    "Segmenter",
    "colour_map",
    "export",
    "load_model",
    "overlay",
    "predict",
]
