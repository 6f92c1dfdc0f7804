"""Training and evaluation."""

from .evaluator import evaluate, validate
from .trainer import train

__all__ = ["evaluate", "train", "validate"]
