"""Deployment: export to Paddle Inference and ONNX, and the web demo."""

from .export import export
from .export_model import OUTPUT_OPS

__all__ = ["OUTPUT_OPS", "export"]
