"""Atomic writes, checks of outputs, locks, and the texts of errors."""

import os
import re

import pytest
from fork_server import python

from paddleseg_segformer import fs
from paddleseg_segformer.errors import InputError, RunError, one_line
from paddleseg_segformer.fs import atomic_path, atomic_write


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "model.pdparams"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert temporary.suffix == path.suffix
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_the_content(tmp_path):
    path = tmp_path / "metrics.json"
    for content in (b"old", b"new"):
        atomic_write(path, content)
        assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    """Otherwise a crash of the machine could leave an empty file."""
    path, synced = tmp_path / "a.json", []
    path.write_bytes(b"old")

    def record(descriptor):
        target = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((os.path.relpath(target, tmp_path), path.read_bytes()))

    monkeypatch.setattr(os, "fsync", record)
    atomic_write(path, b"new")
    assert synced == [(f".a.{os.getpid()}.partial.json", b"old"), (".", b"new")]


def test_a_check_leaves_outputs_as_they_are(tmp_path):
    path = tmp_path / "new/folder/a.json"
    fs.check_file_writable(path, "--json")
    assert path.parent.is_dir() and not list(path.parent.iterdir())
    path.write_text("old")
    os.utime(path, (1, 1))
    fs.check_file_writable(path, "--json")
    assert path.read_text() == "old" and path.stat().st_mtime == 1
    os.mkfifo(tmp_path / "pipe")
    fs.check_file_writable(tmp_path / "pipe", "--json")  # opening it would wait for a reader
    with pytest.raises(InputError, match=r"--json .*a\.json: cannot be written to"):
        fs.check_file_writable(path / "b.json", "--json")
    with pytest.raises(
        InputError, match=r"--report .*folder: cannot be written \(Is a directory\)"
    ):
        fs.check_file_writable(path.parent, "--report")


@pytest.mark.parametrize(
    "error, expected",
    [
        (OSError(28, "No space left on device"), RunError("--save_dir: {} cannot be written (No")),
        (ValueError("a bug"), ValueError("a bug")),
    ],
)
def test_what_a_full_disk_cuts_off_is_removed(error, expected, tmp_path):
    path = tmp_path / "folder/a.png"
    text = re.escape(str(expected).format(path))
    with pytest.raises(type(expected), match=text), fs.cleanup_on_error(path):
        path.write_bytes(b"half")
        raise error
    assert path.exists() == isinstance(error, ValueError)


LOCK = """
import sys, time
from paddleseg_segformer import fs
with fs.lock_dir(sys.argv[1]):
    pass
"""


@pytest.mark.integration
def test_a_folder_is_locked_for_other_processes_until_the_end(tmp_path):
    with fs.lock_dir(tmp_path):
        done = python("-c", LOCK, tmp_path)
        assert done.returncode == 1 and f"--save_dir {tmp_path}: another run is" in done.stderr
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())
    done = python("-c", LOCK, tmp_path)
    assert done.returncode == 0, done.stderr


def test_without_locks_of_the_file_system_nothing_is_locked(tmp_path, monkeypatch):
    import fcntl

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "lockf", unsupported)
    before = len(os.listdir("/proc/self/fd"))
    with fs.lock_dir(tmp_path), fs.lock_dir(tmp_path):
        assert len(os.listdir("/proc/self/fd")) == before


def test_messages_are_printable_lines():
    assert str(InputError("a\nb\x1b[31m.jpg: é")) == "a\\nb\\x1b[31m.jpg: é"
    assert one_line(KeyError("model")) == "'model' is missing"
    assert one_line(ValueError("two\n   lines ")) == "two lines"
    assert one_line(MemoryError()) == "MemoryError"


def test_an_error_removes_the_created_folder_if_it_is_empty(tmp_path):
    folder = tmp_path / "new/folder"
    for error in (RuntimeError, SystemExit):
        with pytest.raises(error), fs.output_dir(folder):
            assert folder.is_dir()
            raise error
        assert not list(tmp_path.iterdir())
    with pytest.raises(RuntimeError), fs.output_dir(folder):
        (folder / "a").touch()
        raise RuntimeError
    assert (folder / "a").exists()
    (folder / "a").unlink()
    with pytest.raises(RuntimeError), fs.output_dir(folder):  # it existed before
        raise RuntimeError
    assert folder.is_dir()


def test_a_loop_of_links_is_not_writable(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(InputError, match=r"--json .*loop: cannot be written to"):
        fs.check_file_writable(tmp_path / "loop/a.json", "--json")
    with pytest.raises(InputError, match=r"--save_dir .*loop: cannot be written to"):
        fs.check_dir_writable(tmp_path / "loop")
