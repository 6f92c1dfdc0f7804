"""Reading checkpoints; no code in a checkpoint is ever run."""

from .loader import Loaded, load_pretrained, load_weights
from .pickles import read_pdparams

__all__ = ["Loaded", "load_pretrained", "load_weights", "read_pdparams"]
