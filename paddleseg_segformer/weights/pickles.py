"""A pickle can name any function to call. These readers know only what tensors need."""

import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np

from ..errors import InputError


def _encode(text, encoding):
    """What Python 2's pickles of bytes call; no other codec is of use to an array."""
    if encoding != "latin1":
        raise InputError(f"it asks for the codec {encoding}, which no checkpoint needs.")
    return text.encode("latin1")


# NumPy 2 renamed its modules; a file made with it reads like one made before.
_NUMPY = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy.core.multiarray", "scalar"): np.core.multiarray.scalar,
    ("numpy._core.multiarray", "scalar"): np.core.multiarray.scalar,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("builtins", "tuple"): tuple,
}


class _DataUnpickler(pickle.Unpickler):
    def __init__(self, file, allowed):
        super().__init__(file)
        self.allowed = allowed

    def find_class(self, module, name):
        try:
            return self.allowed[module, name]
        except KeyError:
            raise InputError(
                f"asks to run {module}.{name}, which no checkpoint needs; nothing of it was run."
            ) from None


def unpickle(file):
    """Read a pickle of NumPy arrays, numbers, strings and containers of them.

    Raises:
        InputError: It asks for anything else.
        Exception: It is damaged; a damaged pickle can raise anything.
    """
    return _DataUnpickler(file, _NUMPY).load()


# PyTorch's storages hold raw little-endian numbers; bfloat16 is the upper half of a float32.
_STORAGES = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


def bfloat16_to_float32(bits):
    """Widen bfloat16 numbers, given as uint16, without loss."""
    return (bits.astype("uint32") << 16).view("float32")


def _rebuild_tensor(storage, offset, size, stride, *_):
    """A tensor of ``size`` and ``stride`` (in elements) within its storage."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= len(storage)):
        raise ValueError("a tensor lies outside its storage")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()


_TORCH = {
    **_NUMPY,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    ("torch", "Size"): tuple,
    **{("torch", name): name for name in _STORAGES},
}


class _TorchUnpickler(_DataUnpickler):
    def __init__(self, archive, pickle_name):
        super().__init__(io.BytesIO(archive.read(pickle_name)), _TORCH)
        self.archive = archive
        self.folder = pickle_name[: -len("data.pkl")]

    def persistent_load(self, reference):
        _, kind, key, _, count = reference
        data = self.archive.read(f"{self.folder}data/{key}")
        storage = np.frombuffer(data, dtype=_STORAGES[kind], count=count)
        return bfloat16_to_float32(storage) if kind == "BFloat16Storage" else storage


def unpickle_torch(path):
    """Read a file of ``torch.save`` of PyTorch 1.6 or later, plain tensors only, without PyTorch.

    Returns:
        What was saved, with NumPy arrays for tensors.

    Raises:
        InputError: It asks for anything but tensors and containers.
        Exception: It is damaged, or is no such file.
    """
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return _TorchUnpickler(archive, name).load()
