"""Convert checkpoints of any supported format to PaddleSeg's."""

from __future__ import annotations

import os
from pathlib import Path

import paddle
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import InputError, RunError
from ..fs import StrPath, atomic_path, named_write_error, output_dir
from .architecture import missing_layers
from .load import Checkpoint, Source, read_weights


def _save_paddle(state, path):
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(path))


WRITERS = {".pdparams": _save_paddle, ".safetensors": save_file}


def convert_checkpoint(
    source: Source, target: StrPath, force: bool = False
) -> tuple[Checkpoint, int, int]:
    """Convert a checkpoint to PaddleSeg's names and Paddle's layout.

    Args:
        source: As for ``load_weights``.
        target: File to write, ``.pdparams`` or ``.safetensors``; written atomically.
        force: Whether an existing file may be replaced.

    Returns:
        The ``Checkpoint``, its number of tensors, and its number of parameters.

    Raises:
        InputError: The source cannot be read, or the target's folder cannot be written to.
        RunError: Writing fails, such as for a full disk.
    """
    target = Path(target)
    folder = target.parent
    if target.suffix not in WRITERS:
        raise InputError(f"{target}: must end in {' or '.join(WRITERS)}.")
    if os.path.exists(target) and not force:
        raise InputError(f"{target}: exists; choose another name, or replace it with --force.")
    checkpoint = read_weights(source)
    architecture = checkpoint.architecture
    missing = missing_layers(architecture, checkpoint.state) if architecture else ["the encoder"]
    if missing:
        raise InputError(
            f"{checkpoint.source}: lacks {missing[0]} and {len(missing) - 1} other layers of a "
            "SegFormer; nothing was written."
        )
    state = {name: value.copy(order="C") for name, value in checkpoint.state.items()}
    try:
        with output_dir(folder, "target"), named_write_error(target), atomic_path(target) as path:
            WRITERS[target.suffix](state, path)
    except SafetensorError as error:
        raise RunError(f"{target}: cannot be written ({error}).") from error
    sizes = (v.size for name, v in state.items() if not name.endswith(("._mean", "._variance")))
    return checkpoint, len(state), sum(sizes)
