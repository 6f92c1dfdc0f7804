"""Atomic writes: a file has its old content or all of the new one."""

import pytest

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
