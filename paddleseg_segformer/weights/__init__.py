"""Reading checkpoints of every SegFormer; no code in a checkpoint is ever run."""

from .architecture import SIZES
from .files import read_dictionary
from .loader import Checkpoint, Loaded, Source, load_pretrained, load_weights, read_weights
from .writer import convert_checkpoint

__all__ = [
    "SIZES",
    "Checkpoint",
    "Loaded",
    "Source",
    "convert_checkpoint",
    "load_pretrained",
    "load_weights",
    "read_dictionary",
    "read_weights",
]
