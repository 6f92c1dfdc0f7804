"""Reading, converting and loading checkpoints; code in a checkpoint is never run."""

from .checkpoint_io import read_saved_dict
from .convert import convert_checkpoint
from .download import local_path
from .load import (
    BAND_RULES,
    Checkpoint,
    LoadResult,
    Source,
    adapt_bands,
    load_pretrained,
    load_weights,
    read_weights,
)

__all__ = [
    "BAND_RULES",
    "Checkpoint",
    "LoadResult",
    "Source",
    "adapt_bands",
    "convert_checkpoint",
    "load_pretrained",
    "load_weights",
    "local_path",
    "read_saved_dict",
    "read_weights",
]
