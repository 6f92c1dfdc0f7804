"""Folders and files to write to, and folders that come with the package."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Union

from .errors import InputError, RunError

StrPath = Union[str, "os.PathLike[str]"]
PACKAGE = Path(__file__).parent


def check_dir_writable(folder: StrPath, flag: str = "--save_dir") -> None:
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


def check_file_writable(path: StrPath, flag: str) -> None:
    """Make the folder of the file that a flag names, and try the file: it stays as it is.

    Raises:
        InputError: The folder cannot be made, or the file not be written.
    """
    is_new = not os.path.lexists(path)
    if is_new or os.path.isfile(path):  # in whose place another comes, from beside it
        check_dir_writable(Path(path).resolve().parent, flag)
    elif Path(path).is_fifo():  # whose reader would take the end of a trial for the end of it all
        return
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise InputError(
            f"{flag} {path}: cannot be written ({error.strerror}); name another file."
        ) from error
    if is_new:
        Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def lock_dir(folder: StrPath) -> Iterator[None]:
    """Within, no other process on this machine can lock the folder; one that is killed loses it.

    Raises:
        InputError: Another process has.
    """
    path, descriptor = Path(folder) / ".lock", None
    if os.name == "posix":
        try:
            descriptor = _lock(path)
        except BlockingIOError:
            raise InputError(
                f"--save_dir {folder}: another run is writing to it; end that one, or name "
                "another folder."
            ) from None
        except OSError:  # a file system without locks
            pass
    try:
        yield
    finally:
        if descriptor is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is locked
            os.close(descriptor)


def _lock(path):
    """The descriptor of the file, locked.

    Raises:
        BlockingIOError: Another process has locked it.
    """
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            # Unlike flock's, no lock that data workers would inherit, and outlive us with.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its owner of before has just removed it


def package_dir(name: str) -> Path:
    """The folder ``configs`` or ``tools``: inside an installed package, beside it in a checkout."""
    installed = PACKAGE / name
    return installed if installed.is_dir() else PACKAGE.parent / name


@contextlib.contextmanager
def cleanup_on_error(path: Path, flag: str = "--save_dir") -> Iterator[None]:
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


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that is there whole or as it was, whenever the process or machine stops.

    Raises:
        OSError: It cannot be written, and is as it was.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        fsync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Wait until a file or a folder's list of files is on the disk."""
    if os.name == "nt":  # which cannot do it by a descriptor for reading
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
