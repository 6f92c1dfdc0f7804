"""Reading, converting and loading checkpoints; code in a checkpoint is never run."""

from .checkpoint_io import read_saved_dict
from .convert import convert_checkpoint
from .download import local_path
from .load import Checkpoint, LoadResult, Source, load_pretrained, load_weights, read_weights

__all__ = [
    "Checkpoint",
    "LoadResult",
    "Source",
    "convert_checkpoint",
    "load_pretrained",
    "load_weights",
    "local_path",
    "read_saved_dict",
    "read_weights",
]
