"""Read checkpoint files; their format is recognized by content, not by file name."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, deserialize

from ..errors import InputError, one_line
from ..fs import check_not_special
from .budget import UNPACKED_FACTOR, Budget
from .download import HUGGINGFACE_FILES
from .unpickle import MAX_NAME, bfloat16_to_float32, unpickle, unpickle_torch

# Weights in a folder: the first of PaddleSeg's that exists, or the only one of Hugging Face's.
_PADDLE_FILES = ("model.pdparams", "ema_model.pdparams")

# Files of torch.save before PyTorch 1.6 begin with this pickled magic number.
_LEGACY_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

BYTES_PER_OPERATION = 4  # of a safetensors header; a tensor takes about a hundred

# Members of a tar file that describe the next one: long names, and names in other encodings.
EXTENDED_HEADERS = (b"L", b"K", b"x", b"g", b"X")

MAX_TENSORS = 100_000  # a SegFormer-B5 has 1,100

_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "BOOL": "?"}
_SAFETENSORS_TYPES |= {f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)}
_SAFETENSORS_TYPES |= {f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)}


def read_checkpoint(path):
    """Read the tensors of a Paddle, PyTorch or safetensors checkpoint.

    Memory and time are bounded by a multiple of the file's size, whatever is in it; see
    ``budget.Budget``.

    Args:
        path: A file, a ``.tar.gz`` of a ``.pdparams`` file, or a folder of PaddleSeg or Hugging
            Face.

    Returns:
        A dictionary of NumPy arrays by name; a nested ``state_dict``, ``model_state_dict`` or
        ``model`` is unwrapped.

    Raises:
        InputError: The path does not exist, or is not a checkpoint, is damaged, asks to run code,
            or would take far more memory or time than its size calls for.
    """
    return extract_tensors(_read(_weights_file(Path(path))), path)


def extract_tensors(state, source):
    """The tensors of a saved dictionary, as ``read_checkpoint`` returns them.

    Args:
        state: Arrays, or Paddle or PyTorch tensors, by name; other values are ignored.
        source: Path or description, for messages.

    Raises:
        InputError: There are no tensors or too many, or one has a long name or cannot be converted
            to NumPy.
    """
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if len(state) > MAX_TENSORS:
        raise InputError(f"{source}: holds more than {MAX_TENSORS:,} tensors; use another file.")
    tensors = {}
    for name, value in state.items():
        if isinstance(name, str) and len(name) > MAX_NAME:
            start = f"{name[:40]}…, a name of {len(name):,} characters"
            raise InputError(f"{source}: holds {start}; use another file.")
        if isinstance(value, list) and len(value) == 2:  # (name, data), of a nested Paddle tensor
            value = value[1]
        if hasattr(value, "__array__"):
            try:
                tensors[str(name).removeprefix("module.")] = _to_numpy(value)
            except (TypeError, ValueError, RuntimeError) as error:
                reason = f"cannot be converted to an array ({one_line(error)})"
                raise InputError(f"{source}: {name} {reason}.") from error
    if not tensors:
        keys = ", ".join(map(str, list(state)[:3])) or "none"
        raise InputError(f"{source}: holds no tensors; its first keys are {keys}.")
    return tensors


def _to_numpy(value):
    if hasattr(value, "detach"):  # a Paddle or PyTorch tensor
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
    return np.asarray(value)


def read_saved_dict(path):
    """Read the dictionary in a file, such as the optimizer state in a ``.pdopt`` file.

    Raises:
        InputError: As ``read_checkpoint``.
    """
    return _read(Path(path))


def _weights_file(path):
    """The file itself, or the file of weights in a folder."""
    if not path.is_dir():
        return path
    candidates = [name for name in _PADDLE_FILES if (path / name).is_file()][:1]
    candidates = candidates or [name for name in HUGGINGFACE_FILES if (path / name).is_file()]
    if len(candidates) != 1:
        held, names = " and ".join(candidates), ", ".join(_PADDLE_FILES + HUGGINGFACE_FILES)
        raise InputError(f"{path}: holds {held or 'none'} of {names}; name the file to load.")
    return path / candidates[0]


def _read(path):
    try:
        state = _reader(path)(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: is not a checkpoint, or is damaged ({type(error).__name__}: {error}); "
            "download it again."
        ) from error
    if not isinstance(state, dict):
        held = "no tensors" if state is None else f"a {type(state).__name__}"
        raise InputError(f"{path}: holds {held}, not a dictionary of tensors.")
    state.pop("StructuredToParameterName@@", None)
    return state


def _reader(path):
    check_not_special(path)
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        raise InputError("is empty; download it again.")
    if start.startswith(_LEGACY_TORCH_MAGIC):
        raise InputError(
            "has the format of PyTorch before 1.6; load it in PyTorch and save it with torch.save."
        )
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError("is a web page, not a checkpoint; download the file itself.")
    if start.startswith(b"\x1f\x8b"):
        return _read_tar
    if zipfile.is_zipfile(path):
        return unpickle_torch
    if start[8:9] == b"{":
        return _read_safetensors
    if start.startswith(b"\x80"):
        return lambda path: unpickle(path.read_bytes())
    raise InputError("is not a checkpoint of Paddle, PyTorch or safetensors.")


def _read_tar(path):
    """PaddleSeg publishes backbones as an archive with one ``.pdparams``.

    Not by ``tarfile`` alone, which reads headers of any length into memory, and follows links.
    """
    available = UNPACKED_FACTOR * path.stat().st_size + (1 << 20)
    found, data = 0, b""
    with gzip.open(path) as file:
        while header := file.read(tarfile.BLOCKSIZE):
            try:
                member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.EOFHeaderError:
                break
            has_data = member.isreg() or member.type not in tarfile.SUPPORTED_TYPES
            has_data = has_data or member.type in EXTENDED_HEADERS
            size = member.size if has_data else 0
            available -= tarfile.BLOCKSIZE + size
            if available < 0 or size < 0:
                raise InputError("would unpack to far more than its size; download it again.")
            if member.isreg() and member.name.endswith(".pdparams"):
                found, data = found + 1, file.read(size)
                file.read(-size % tarfile.BLOCKSIZE)
            else:
                file.seek(size + -size % tarfile.BLOCKSIZE, io.SEEK_CUR)
    if found != 1:
        raise InputError(f"holds {found} files *.pdparams; there must be one.")
    return unpickle(data)


def _read_safetensors(path):
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    Budget(len(data)).charge(operations=min(header, len(data)) // BYTES_PER_OPERATION)
    try:
        tensors = deserialize(data)
    except SafetensorError as error:
        raise InputError(f"is a damaged safetensors file ({error}); download it again.") from error
    state = {}
    for name, tensor in tensors:
        if tensor["dtype"] not in _SAFETENSORS_TYPES:
            raise InputError(f"has tensors of type {tensor['dtype']}, which is not supported.")
        value = np.frombuffer(tensor["data"], dtype=_SAFETENSORS_TYPES[tensor["dtype"]])
        if tensor["dtype"] == "BF16":
            value = bfloat16_to_float32(value)
        state[name] = value.reshape(tensor["shape"])
    return state
