"""Inference: trained models, test-time augmentation, images to segmentation maps."""

from .backends import BACKENDS
from .predict_files import predict
from .predictor import Prediction, Predictor
from .segmenter import Segmenter, load_model
from .test_config import TestConfig
from .visualize import color_map, overlay

__all__ = ["BACKENDS", "Prediction", "Predictor", "Segmenter", "TestConfig"]
__all__ += ["color_map", "load_model", "overlay", "predict"]
