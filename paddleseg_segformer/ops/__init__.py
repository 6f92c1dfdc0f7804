"""Exact, fast building blocks that know nothing of models."""

from .resize import resize_bilinear

__all__ = ["resize_bilinear"]
