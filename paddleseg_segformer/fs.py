"""File system helpers: checks before writing, atomic writes, folder locks, package folders."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

from .errors import InputError, RunError

StrPath = Union[str, "os.PathLike[str]"]
PACKAGE = Path(__file__).parent


def as_list(paths: StrPath | Sequence[StrPath] | None) -> list[StrPath]:
    """A list of paths as it is, one path as a list of one, None as an empty list."""
    if paths is None or isinstance(paths, (str, os.PathLike)):
        return [] if paths is None else [paths]
    return list(paths)


def check_not_special(path: StrPath) -> None:
    """Refuse a device or a pipe, of which reading may never end.

    Raises:
        OSError: The path is one.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise OSError(errno.EINVAL, "not a file", os.fspath(path))


def check_dir_writable(folder: StrPath, flag: str = "--save_dir") -> None:
    """Create an output folder if needed, and check that files can be created in it.

    Raises:
        InputError: The folder cannot be created or written to; the message names ``flag``.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(
            f"{flag} {folder}: cannot be written to ({error.strerror}); name another folder."
        ) from error


@contextlib.contextmanager
def output_dir(folder: StrPath, flag: str = "--save_dir") -> Iterator[None]:
    """``check_dir_writable``; after an error within, what was created is removed if it is empty.

    Raises:
        InputError: The folder cannot be created or written to; the message names ``flag``.
    """
    created = [path for path in (Path(folder), *Path(folder).parents) if not os.path.lexists(path)]
    try:
        check_dir_writable(folder, flag)
        yield
    except BaseException:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def check_file_writable(path: StrPath, flag: str) -> None:
    """Check that an output file can be written; its folder is created, its content is unchanged.

    Raises:
        InputError: The folder cannot be created or the file cannot be written.
    """
    is_new = not os.path.lexists(path)
    if is_new or os.path.isfile(path):  # will be replaced by a file written beside it
        check_dir_writable(os.path.dirname(os.path.realpath(path)), flag)
    elif Path(path).is_fifo():  # closing it here would be the end of the file to its reader
        return
    try:
        open(path, "a").close()
    except OSError as error:
        raise InputError(
            f"{flag} {path}: cannot be written ({error.strerror}); name another file."
        ) from error
    if is_new:
        Path(path).unlink(missing_ok=True)


@contextlib.contextmanager
def lock_dir(folder: StrPath) -> Iterator[None]:
    """Hold an exclusive lock on a folder, against other processes on this machine.

    The lock ends with the process. Where the file system has no locks, nothing is locked.

    Raises:
        InputError: Another process holds the lock.
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
                path.unlink()  # before the lock is released
            os.close(descriptor)


def _lock(path):
    """The descriptor of a locked file; BlockingIOError if another process holds the lock."""
    import fcntl

    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
        try:
            # Not flock, whose locks data-loading workers would inherit and keep after this process.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(descriptor)):
                    return descriptor
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its previous owner has just removed it


def configs_dir() -> Path:
    """The folder ``configs``: inside an installed package, beside it in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


@contextlib.contextmanager
def cleanup_on_error(path: Path, flag: str = "--save_dir") -> Iterator[None]:
    """Create the parent folder of an output file, and remove the file if writing it fails.

    Raises:
        RunError: An OSError was raised within, such as for a full disk.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        raise RunError(f"{flag}: {path} cannot be written ({error.strerror}).") from error


@contextlib.contextmanager
def named_write_error(path: StrPath) -> Iterator[None]:
    """Raise a RunError that names the path for an OSError within, such as for a full disk.

    ``path`` may be preceded by the flag that names it.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror}).") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` if nothing is raised.

    The temporary path has the same suffix, and one per process. After a crash of the process or
    the machine, ``path`` has its old content or all of the new one.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield temporary
        fsync(temporary)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    fsync(path.parent)


def atomic_write(path: Path, content: bytes) -> None:
    """Write a whole file with ``atomic_path``."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    if os.name == "nt":  # Windows flushes only descriptors that are open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
