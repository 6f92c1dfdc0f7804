"""Folders to write to."""

import contextlib
import tempfile
from pathlib import Path

from .errors import InputError, RunError


def check_folder(folder, flag="--save_dir"):
    """Make the folder that a flag names.

    Raises:
        InputError: It cannot be made, or not be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{flag} {folder}: cannot be written to ({error.strerror}); name another folder."
        ) from error


@contextlib.contextmanager
def writing(path, flag="--save_dir"):
    """Within, write a file of a folder that was checked; half a file is not left.

    Raises:
        RunError: It cannot be written, as where the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise RunError(f"{flag}: {path} cannot be written ({error.strerror}).") from error
