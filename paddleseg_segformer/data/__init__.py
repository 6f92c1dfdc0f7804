"""Data sets, class names and palettes, transforms, quick-start scenes."""

from .ade20k import ADE20K
from .classes import class_names, palette
from .dataset import Dataset

__all__ = ["ADE20K", "Dataset", "class_names", "palette"]
