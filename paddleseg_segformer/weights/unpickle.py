"""Unpickle tensors without running code.

A pickle is a program: it can call any function, set any attribute, and give NumPy forged pointers.
This unpickler accepts only the opcodes that dictionaries of tensors need, and replaces NumPy's and
PyTorch's types by its own, which validate their arguments.

A pickle is also a program that can make much of little. A ``Budget`` bounds that, whatever is in
the pickle: every opcode is charged; so are the arguments of every call, before it, because a
function looks at each of their items at most once; so are the bytes read for a tensor, and the
tensor wherever it occurs. An opcode by itself takes constant time and memory, apart from the bytes
of the file that it consumes: no integer has more than 64 bits, keys are short, the memo is a list.
"""

import io
import math
import os
import pickle
import zipfile

import numpy as np

from ..errors import InputError
from .budget import Budget

_OPCODES = """
    PROTO FRAME STOP MARK POP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINSTRING
    SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS
    GLOBAL STACK_GLOBAL REDUCE BUILD BINPERSID BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE
"""

MAX_NAME = 1000  # characters of a key
MAX_DIMENSIONS = 32  # of NumPy 1


class _Dict(dict):
    """A dictionary with strings as keys, to which integers are converted.

    The time to look up others, or long ones, is not bounded; Python's hashes of strings are random,
    unlike those of integers, many of which can be given the same place in a dictionary.
    """

    __slots__ = ()

    def __init__(self, items=()):
        for key, value in items:
            self[key] = value

    def __setitem__(self, key, value):
        if type(key) not in (str, int):
            raise ValueError(f"a key is a {type(key).__name__}")
        key = str(key)
        if len(key) > MAX_NAME:
            raise ValueError(f"a name has {len(key)} characters")
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


class _Memo(list):
    """A pickle's memo, whose indices are less than the file's size; a dictionary can be slow."""

    def __init__(self, size):
        super().__init__()
        self._size = size

    def __setitem__(self, index, value):
        if index >= self._size:
            raise ValueError("its memo is larger than the file")
        self.extend([None] * (index + 1 - len(self)))
        super().__setitem__(index, value)


_DTYPES = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} - {"f1"} | {"b1", "?"}


class _Dtype:
    """``numpy.dtype``, restricted to numbers."""

    __slots__ = ("code",)

    def __init__(self, code, *_):
        if type(code) is not str or code.lstrip("<>|=") not in _DTYPES or len(code) > 3:
            raise ValueError("an array of another type than numbers")
        self.code = code

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
        if not _are_sizes(shape) or math.prod(shape) != values.size:
            raise ValueError("the shape of an array does not match its data")
        self.value = values.reshape(shape, order="F" if column_major else "C")


def _are_sizes(values):
    """Whether the value is a tuple of a number for each dimension of an array."""
    is_short = type(values) is tuple and len(values) <= MAX_DIMENSIONS
    return is_short and all(type(n) is int and n >= 0 for n in values)


def _numbers(data, dtype):
    """A one-dimensional array that shares the memory of the bytes."""
    if type(data) is not bytes or type(dtype) is not _Dtype:
        raise ValueError("an array without data or type")
    return np.frombuffer(data, dtype=dtype.code)


def _scalar(dtype, data):
    (number,) = _numbers(data, dtype)
    return number.item()


def _encode(text, encoding):
    """``_codecs.encode``, by which protocol 2 pickles bytes."""
    if encoding != "latin1":
        raise ValueError("it uses another codec than latin1")
    return text.encode("latin1")


_ALLOWED = {
    ("_codecs", "encode"): _Function(_encode),
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

    def __init__(self, data, budget):
        super().__init__(io.BytesIO(data))
        self.memo, self.budget = _Memo(len(data)), budget
        self.dispatch = _ChargingDispatch(self.dispatch, budget)

    def load_empty_dict(self):
        self.append(_Dict())

    dispatch[pickle.EMPTY_DICT[0]] = load_empty_dict

    def load_long1(self):
        size = self.read(1)[0]
        if size > 9:  # an unsigned integer of 64 bits, and its sign
            raise ValueError("an integer of more than 64 bits")
        self.append(pickle.decode_long(self.read(size)))

    dispatch[pickle.LONG1[0]] = load_long1

    def load_reduce(self):
        arguments = self.stack.pop()
        if type(arguments) is not tuple:
            raise ValueError("a call without a tuple of arguments")
        self.budget.charge(operations=len(arguments))
        for argument in arguments:
            if isinstance(argument, (list, tuple, dict)):
                self.budget.charge(operations=len(argument))
            elif isinstance(argument, (str, bytes)):
                self.budget.charge(size=len(argument))
        self.stack[-1] = self.stack[-1](*arguments)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_build(self):
        state = self.stack.pop()
        self.stack[-1].__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module, name):
        key = module.replace("numpy._core.", "numpy.core."), name  # the former is NumPy 2's
        if key not in self.allowed:
            raise InputError(
                f"asks to run {module[:100]}.{name[:100]}, which no checkpoint needs; nothing was "
                "run."
            )
        return self.allowed[key]


class _ChargingDispatch(dict):
    """The functions of the opcodes, each of which is charged."""

    def __init__(self, functions, budget):
        super().__init__(functions)
        self._charge = budget.charge

    def __getitem__(self, opcode):
        self._charge(1)
        return super().__getitem__(opcode)


def _to_builtin(tree, done, budget):
    """Replace the types of this module; ``done`` holds the results of shared objects by id.

    An array is charged wherever it occurs, since it may be copied there, from uint16 to float32.
    """
    if isinstance(tree, _Array):
        size = getattr(tree.value, "nbytes", 0)
        budget.charge(size=2 * size if size and tree.value.dtype == np.uint16 else size)
        return tree.value
    if isinstance(tree, (_Inert, _Immutable, _Dtype)):
        return None
    if not isinstance(tree, (dict, list, tuple)):
        return tree
    if id(tree) not in done:
        if isinstance(tree, dict):
            done[id(tree)] = converted = {}
            converted.update((key, _to_builtin(value, done, budget)) for key, value in tree.items())
        else:
            done[id(tree)] = [_to_builtin(value, done, budget) for value in tree]
    return done[id(tree)]


def unpickle(data):
    """Unpickle arrays, numbers, strings, and dictionaries and lists of them.

    It takes at most a multiple of the size of the data, and a constant, in memory and time; see
    ``Budget``.

    Returns:
        The object, with NumPy arrays, lists for tuples, dictionaries with strings as keys for all
        mappings, and None for objects of other types.

    Raises:
        InputError: The pickle uses another type or function, or exceeds the budget.
        Exception: The pickle is damaged; any type may be raised.
    """
    budget = Budget(len(data))
    return _to_builtin(_DataUnpickler(data, budget).load(), {}, budget)


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
    if type(storage) is not _Storage:
        raise ValueError("a tensor without storage")
    if not all(map(_are_sizes, ((offset,), size, stride))) or len(size) != len(stride):
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

    def __init__(self, archive, pickle_name, budget):
        self.archive, self.storages = archive, {}
        self.folder = pickle_name[: -len("data.pkl")]
        super().__init__(self.read_entry(pickle_name, budget), budget)

    def read_entry(self, name, budget):
        """The bytes of a file in the archive, of which several may share the same bytes."""
        size = self.archive.getinfo(name).file_size
        budget.charge(size=size)
        return self.archive.read(name)

    def persistent_load(self, reference):
        _, kind, key, _, count = reference
        if type(kind) is not str or type(key) is not str:
            raise ValueError("a storage without type or name")
        if (kind, key) not in self.storages:
            data = self.read_entry(f"{self.folder}data/{key}", self.budget)
            numbers = np.frombuffer(data, dtype=_STORAGES[kind], count=count)
            if kind == "BFloat16Storage":
                self.budget.charge(size=2 * numbers.nbytes)
                numbers = bfloat16_to_float32(numbers)
            self.storages[kind, key] = _Storage(numbers)
        return self.storages[kind, key]


def unpickle_torch(path):
    """Read a file of ``torch.save`` of PyTorch 1.6 or later, without PyTorch.

    Returns:
        As ``unpickle``, within the same budget of the file's size.

    Raises:
        InputError: The file uses other types or functions than tensors and containers, or exceeds
            the budget.
        Exception: The file is damaged or has another format.
    """
    budget = Budget(os.path.getsize(path))
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        budget.charge(operations=len(entries))
        if any(e.compress_type or e.compress_size != e.file_size for e in entries):
            raise ValueError("it is compressed, which PyTorch's files are not")
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        return _to_builtin(_TorchUnpickler(archive, name, budget).load(), {}, budget)
