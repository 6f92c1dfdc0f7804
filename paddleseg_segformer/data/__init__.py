"""Data sets, class names and palettes, transforms, and checks and preparation of data sets."""

from .ade20k import ADE20K
from .classes import class_names, palette
from .dataset import Dataset

__all__ = ["ADE20K", "Dataset", "class_names", "palette"]
