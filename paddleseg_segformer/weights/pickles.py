"""Paddle's checkpoints are pickles, and a pickle can name any function to call: read only data."""

import pickle

import numpy as np

from ..errors import InputError

# What a pickle of NumPy arrays in dictionaries and lists asks for. NumPy 2 renamed its modules.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): np.core.multiarray._reconstruct,
    ("numpy.core.multiarray", "scalar"): np.core.multiarray.scalar,
    ("numpy._core.multiarray", "scalar"): np.core.multiarray.scalar,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _DataUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise InputError(
                f"it asks to run {module}.{name}, which no checkpoint needs; nothing was run."
            ) from None


def read_pdparams(path):
    """Read a ``.pdparams`` or ``.pdopt`` file.

    Returns:
        The saved dictionary, of NumPy arrays, numbers, strings and dictionaries of them.

    Raises:
        InputError: The file is missing or damaged, holds no dictionary, or asks to run code.
    """
    try:
        with open(path, "rb") as file:
            state = _DataUnpickler(file).load()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        raise InputError(
            f"{path}: is not a Paddle checkpoint, or is damaged ({error}); fetch or save it again."
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path}: holds a {type(state).__name__}, not a dictionary of tensors.")
    state.pop("StructuredToParameterName@@", None)
    return state
