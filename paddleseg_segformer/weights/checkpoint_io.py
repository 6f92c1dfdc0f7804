"""Reading checkpoint files. The kind of a file is told from its content, not from its name."""

import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from ..errors import InputError, one_line
from .unpickle import bfloat16_to_float32, unpickle, unpickle_torch

# Names of the weights in a folder: PaddleSeg's, of which the first counts, and Hugging Face's.
_PADDLE_FILES = ("model.pdparams", "ema_model.pdparams")
_FOLDER_FILES = ("model.safetensors", "pytorch_model.bin")

# Before version 1.6, torch.save began with this magic number, pickled.
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

MAX_COMPRESSION_RATIO = 100  # times the archive's size; weights hardly shrink

_SAFETENSORS_TYPES = {
    **{f"F{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    "BOOL": "?",
    "BF16": "<u2",
}


def read_checkpoint(path):
    """Read a checkpoint of any kind: Paddle's, PyTorch's, safetensors, a ``.tar.gz`` or a folder.

    Args:
        path: A file, or a Hugging Face model folder.

    Returns:
        A dictionary of NumPy arrays by name; a nested ``state_dict``, ``model_state_dict`` or
        ``model`` is unwrapped.

    Raises:
        InputError: The path is missing, is no checkpoint, is damaged, or asks to run code.
    """
    return extract_tensors(_read(_file_of(Path(path))), path)


def extract_tensors(state, source):
    """The tensors in a dictionary that a framework would save.

    Args:
        state: Arrays, or tensors of Paddle or PyTorch, by name, perhaps nested and beside others.
        source: Where it came from, for messages.

    Returns:
        As ``read_checkpoint``.

    Raises:
        InputError: There are none, or one has no NumPy type.
    """
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    tensors = {}
    for name, value in state.items():
        if isinstance(value, list) and len(value) == 2:  # nested, Paddle names each tensor again
            value = value[1]
        if hasattr(value, "__array__"):
            try:
                tensors[str(name).removeprefix("module.")] = _array(value)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(f"{source}: {name} is no array ({one_line(error)}).") from error
    if not tensors:
        keys = ", ".join(str(key) for key in list(state)[:3]) or "none"
        raise InputError(f"{source}: holds no tensors; its first keys are {keys}.")
    return tensors


def _array(value):
    if hasattr(value, "detach"):  # Paddle's or PyTorch's
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return np.asarray(value)


def read_saved_dict(path):
    """Read one file's dictionary as it was saved, such as an optimizer's state from a ``.pdopt``.

    Raises:
        InputError: As ``read_checkpoint``.
    """
    return _read(Path(path))


def _file_of(path):
    if not path.is_dir():
        return path
    for name in _PADDLE_FILES:
        if (path / name).is_file():
            return path / name
    candidates = [path / name for name in _FOLDER_FILES if (path / name).is_file()]
    if len(candidates) != 1:
        found = " and ".join(candidate.name for candidate in candidates) or "none"
        names = ", ".join((*_PADDLE_FILES, *_FOLDER_FILES))
        raise InputError(f"{path}: holds {found} of {names}; name the file to load.")
    return candidates[0]


def _read(path):
    try:
        state = _reader(path)(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: is no checkpoint, or is damaged ({type(error).__name__}: {error}); fetch it "
            "again."
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors.")
    state.pop("StructuredToParameterName@@", None)
    return state


def _reader(path):
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise InputError("is empty; fetch it again.")
    if start.startswith(_OLD_TORCH):
        raise InputError(
            "has the format of PyTorch before 1.6; load it there and save it again with torch.save."
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError("is a web page, not a checkpoint; fetch the file itself.")
    if start.startswith(b"\x1f\x8b"):
        return _read_tar
    if zipfile.is_zipfile(path):
        return unpickle_torch
    if start[8:9] == b"{":
        return _read_safetensors
    if start.startswith(b"\x80"):
        return _read_paddle
    raise InputError("is no checkpoint: not of Paddle, PyTorch or safetensors.")


def _read_paddle(path):
    return unpickle(path.read_bytes())


def _read_tar(path):
    """PaddleSeg publishes backbones as an archive with one ``.pdparams``."""
    with tarfile.open(path, "r:gz") as archive:
        members = [member for member in archive.getmembers() if member.name.endswith(".pdparams")]
        if len(members) != 1:
            raise InputError(f"holds {len(members)} files *.pdparams; there must be one.")
        if members[0].size > MAX_COMPRESSION_RATIO * path.stat().st_size:
            raise InputError("would unpack to far more than weights do; fetch it again.")
        return unpickle(archive.extractfile(members[0]).read())


def _read_safetensors(path):
    try:
        tensors = deserialize(path.read_bytes())
    except SafetensorError as error:
        raise InputError(f"is a damaged safetensors file ({error}); fetch it again.") from error
    state = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _SAFETENSORS_TYPES:
            raise InputError(f"has tensors of type {tensor['dtype']}, which is not supported.")
        value = np.frombuffer(tensor["data"], dtype=_SAFETENSORS_TYPES[tensor["dtype"]])
        if tensor["dtype"] == "BF16":
            value = bfloat16_to_float32(value)
        state[name] = value.reshape(tensor["shape"])
    return state
