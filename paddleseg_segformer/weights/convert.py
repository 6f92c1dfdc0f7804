"""Writing a checkpoint in our names."""

from __future__ import annotations

import math
import os
from pathlib import Path

import paddle
from safetensors import SafetensorError
from safetensors.numpy import save_file

from ..errors import InputError
from ..fs import StrPath
from .architecture import missing_parts
from .load import Checkpoint, Source, read_weights


def _save_paddle(state, path):
    paddle.save({name: paddle.to_tensor(value) for name, value in state.items()}, str(path))


WRITERS = {".pdparams": _save_paddle, ".safetensors": save_file}


def convert_checkpoint(
    source: Source, target: StrPath, force: bool = False
) -> tuple[Checkpoint, int, int]:
    """Turn a checkpoint of any format into ours.

    Args:
        source: As in ``load_weights``.
        target: File to write, ``.pdparams`` or ``.safetensors``. It appears whole or not at all.
        force: Whether an existing file may be replaced.

    Returns:
        The ``Checkpoint``, the number of its tensors, and that of its parameters.

    Raises:
        InputError: The source cannot be read, or the target cannot be written.
    """
    target = Path(target)
    if target.suffix not in WRITERS:
        raise InputError(f"{target}: must end in {' or '.join(WRITERS)}.")
    if os.path.exists(target) and not force:
        raise InputError(f"{target}: exists; choose another name, or replace it with --force.")
    checkpoint = read_weights(source)
    architecture = checkpoint.architecture
    missing = missing_parts(architecture, checkpoint.state) if architecture else ["the encoder"]
    if missing:
        raise InputError(
            f"{checkpoint.source}: lacks {missing[0]} and {len(missing) - 1} other layers of a "
            "SegFormer; nothing was written."
        )
    state = {name: value.copy(order="C") for name, value in checkpoint.state.items()}
    # Paddle and safetensors look at the ending, so the temporary name keeps it.
    partial = target.with_name(f".{os.getpid()}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        WRITERS[target.suffix](state, partial)
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{target}: cannot be written ({error}).") from error
    finally:
        if os.path.exists(partial):
            partial.unlink()
    parameters = sum(
        math.prod(value.shape)
        for name, value in state.items()
        if not name.endswith(("._mean", "._variance"))
    )
    return checkpoint, len(state), parameters
