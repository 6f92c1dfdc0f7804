"""Unpickle tensors without running code.

A pickle is a program: it can call any function, set any attribute, and give NumPy forged pointers.
This unpickler accepts only the opcodes that dictionaries of tensors need, and replaces NumPy's and
PyTorch's types by its own, which validate their arguments.
"""

import io
import math
import pickle
import re
import zipfile

import numpy as np

from ..errors import InputError

_OPCODES = """
    PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
    FLOAT BINFLOAT BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND
    APPENDS EMPTY_DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID PUT BINPUT
    LONG_BINPUT GET BINGET LONG_BINGET MEMOIZE
"""


class _Dict(dict):
    """A dictionary with only strings and integers as keys: others could take forever to hash."""

    __slots__ = ()

    def __init__(self, items=()):
        for key, value in items:
            self[key] = value

    def __setitem__(self, key, value):
        if type(key) not in (str, int):
            raise ValueError(f"a key is a {type(key).__name__}")
        super().__setitem__(key, value)

    def __setstate__(self, state):
        """Ignore the attribute ``_metadata`` of PyTorch's state dicts."""


class _Immutable:
    """A value whose attributes a pickle cannot set."""

    __slots__ = ("value",)

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        raise ValueError("it sets attributes of a function or storage")


class _Function(_Immutable):
    """A function that a pickle may call."""

    __slots__ = ()

    def __call__(self, *args):
        return self.value(*args)


class _Inert:
    """Placeholder of objects other than tensors, such as a training log; does nothing."""

    __slots__ = ()

    def __call__(self, *_):
        return self

    def __setstate__(self, state):
        pass


class _Dtype:
    """``numpy.dtype``, restricted to numbers."""

    __slots__ = ("code",)

    def __init__(self, code, *_):
        if not re.fullmatch(r"[<>|=]?([iuf][1248]|b1|\?)", str(code)):
            raise ValueError(f"an array of type {str(code)[:20]}")
        self.code = str(code)

    def __setstate__(self, state):
        if state[1] in ("<", ">"):
            self.code = state[1] + self.code.lstrip("<>|=")


class _Array:
    """An array; NumPy's pickles create it empty and fill it by ``__setstate__``."""

    __slots__ = ("value",)

    def __init__(self, value=None):
        self.value = value

    def __setstate__(self, state):
        _, shape, dtype, column_major, data = state
        values = _numbers(data, dtype)
        if any(type(n) is not int or n < 0 for n in shape) or math.prod(shape) != values.size:
            raise ValueError("the shape of an array does not match its data")
        self.value = values.reshape(shape, order="F" if column_major else "C")


def _numbers(data, dtype):
    """A one-dimensional array that shares the memory of the bytes."""
    if type(data) is not bytes or type(dtype) is not _Dtype:
        raise ValueError("an array without data or type")
    return np.frombuffer(data, dtype=dtype.code)


def _scalar(dtype, data):
    (number,) = _numbers(data, dtype)
    return number.item()


_ALLOWED = {
    ("collections", "OrderedDict"): _Function(_Dict),
    ("builtins", "tuple"): _Function(tuple),
    ("numpy", "ndarray"): _Inert(),
    ("numpy", "dtype"): _Function(_Dtype),
    ("numpy.core.multiarray", "_reconstruct"): _Function(lambda *_: _Array()),
    ("numpy.core.multiarray", "scalar"): _Function(_scalar),
    # In mmengine's checkpoints beside the weights.
    ("mmengine.logging.history_buffer", "HistoryBuffer"): _Inert(),
    ("builtins", "getattr"): _Inert(),
}


class _DataUnpickler(pickle._Unpickler):
    """The pure Python unpickler: the C one can be made to allocate any amount of memory."""

    dispatch = {  # noqa: RUF012 - as in the base class
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]]
        for name in _OPCODES.split()
    }

    allowed = _ALLOWED

    def __init__(self, data):
        super().__init__(io.BytesIO(data))
        self.encodable = len(data)  # bytes: each string may be encoded once

    def encode(self, text, encoding):
        """``_codecs.encode``, by which protocol 2 pickles bytes."""
        self.encodable -= len(text)
        if encoding != "latin1" or self.encodable < 0:
            raise ValueError(f"it uses the codec {encoding}, or encodes too much text")
        return text.encode("latin1")

    def load_empty_dict(self):
        self.append(_Dict())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict

    def find_class(self, module, name):
        if (module, name) == ("_codecs", "encode"):
            return _Function(self.encode)
        key = module.replace("numpy._core.", "numpy.core."), name  # the former is NumPy 2's
        if key not in self.allowed:
            raise InputError(
                f"asks to run {module}.{name}, which no checkpoint needs; nothing was run."
            )
        return self.allowed[key]


def _to_builtin(tree, done):
    """Replace the types of this module; ``done`` holds the results of shared objects by id."""
    if isinstance(tree, _Array):
        return tree.value
    if not isinstance(tree, (dict, list, tuple)):
        return tree
    if id(tree) not in done:
        if isinstance(tree, dict):
            done[id(tree)] = converted = {}
            converted.update((key, _to_builtin(value, done)) for key, value in tree.items())
        else:
            done[id(tree)] = [_to_builtin(value, done) for value in tree]
    return done[id(tree)]


def unpickle(data):
    """Unpickle arrays, numbers, strings, and dictionaries and lists of them.

    Returns:
        The object, with NumPy arrays, lists for tuples, and dictionaries for all mappings.

    Raises:
        InputError: The pickle uses another type or function.
        Exception: The pickle is damaged; any type may be raised.
    """
    return _to_builtin(_DataUnpickler(data).load(), {})


# PyTorch's storages are little-endian; bfloat16 is the upper half of a float32.
_STORAGES = {"FloatStorage": "<f4", "DoubleStorage": "<f8", "HalfStorage": "<f2"}
_STORAGES |= {"LongStorage": "<i8", "IntStorage": "<i4", "ShortStorage": "<i2"}
_STORAGES |= {"CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?"}
_STORAGES |= {"BFloat16Storage": "<u2"}


def bfloat16_to_float32(bits):
    """Convert bfloat16 numbers, given as uint16, to float32 without loss."""
    return np.left_shift(bits, 16, dtype="uint32").view("float32")


class _Storage(_Immutable):
    """The one-dimensional array that tensors are views of."""

    __slots__ = ()


def _rebuild_tensor(storage, offset, size, stride, *_):
    """A view of a storage; ``offset`` and ``stride`` are in elements."""
    if type(storage) is not _Storage or len(size) != len(stride):
        raise ValueError("a tensor without storage")
    if any(type(n) is not int or n < 0 for n in (offset, *size, *stride)):
        raise ValueError("the size or stride of a tensor is invalid")
    numbers = storage.value
    last = offset + sum((n - 1) * step for n, step in zip(size, stride))
    if math.prod(size) > len(numbers) or (0 not in size and last >= len(numbers)):
        raise ValueError("a tensor lies outside its storage")
    strides = [step * numbers.itemsize for step in stride]
    return _Array(np.lib.stride_tricks.as_strided(numbers[offset:], size, strides))


_TORCH = {
    **_ALLOWED,
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(lambda tensor, *_: tensor),
    ("torch", "Size"): _Function(tuple),
    ("torch", "device"): _Inert(),
    **{("torch", name): name for name in _STORAGES},
    **{("torch", f"{kind}{bits}"): _Inert() for kind in ("float", "int") for bits in (16, 32, 64)},
    **{("torch", name): _Inert() for name in ("bfloat16", "bool", "uint8", "int8")},
}


class _TorchUnpickler(_DataUnpickler):
    allowed = _TORCH

    def __init__(self, archive, pickle_name):
        super().__init__(archive.read(pickle_name))
        self.archive, self.storages = archive, {}
        self.folder = pickle_name[: -len("data.pkl")]

    def persistent_load(self, reference):
        _, kind, key, _, count = reference
        if (kind, key, count) not in self.storages:
            data = self.archive.read(f"{self.folder}data/{key}")
            numbers = np.frombuffer(data, dtype=_STORAGES[kind], count=count)
            if kind == "BFloat16Storage":
                numbers = bfloat16_to_float32(numbers)
            self.storages[kind, key, count] = _Storage(numbers)
        return self.storages[kind, key, count]


def unpickle_torch(path):
    """Read a file of ``torch.save`` of PyTorch 1.6 or later, without PyTorch.

    Returns:
        As ``unpickle``.

    Raises:
        InputError: The file uses other types or functions than tensors and containers.
        Exception: The file is damaged or has another format.
    """
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError("it is compressed, which PyTorch's files are not")
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return _to_builtin(_TorchUnpickler(archive, name).load(), {})
