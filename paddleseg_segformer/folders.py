"""Folders to write to, and those that come with the package."""

import tempfile
from pathlib import Path

from .errors import InputError

PACKAGE = Path(__file__).parent


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


def shipped(name):
    """The folder ``configs`` or ``tools``: inside an installed package, beside it in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name
