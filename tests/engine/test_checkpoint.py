"""Checkpoints: damaged ones are detected, intact ones survive kills and full disks."""

import json
import resource
import shutil

import numpy as np
import pytest
from training_runs import write_checkpoint

from paddleseg_segformer.engine import checkpoint
from paddleseg_segformer.engine.resume import newest_checkpoint, open_checkpoint
from paddleseg_segformer.engine.run_dir import count_checkpoints, prune_checkpoints, start_run
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.weights import read_saved_dict

FILES = ("model.pdparams", "model.pdopt")


def contents(save_dir):
    return {str(p.relative_to(save_dir)): p.read_bytes() for p in save_dir.rglob("*.*")}


def test_a_checkpoint_is_what_was_saved(tmp_path):
    written = write_checkpoint(tmp_path, 7)
    found = checkpoint.verify(tmp_path / "iter_7")
    assert found == written
    assert found["iteration"] == 7 and found["config"] == {"a.0": None, "b": [1, 2.5]}
    for name in FILES:
        np.testing.assert_array_equal(
            read_saved_dict(tmp_path / "iter_7" / name)["w"], [7.0] * 1000
        )


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def remove(path):
    path.unlink()


@pytest.mark.parametrize("name", [*FILES, checkpoint.MANIFEST])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, remove])
def test_a_damaged_checkpoint_is_skipped_for_the_previous_one(damage, name, tmp_path, caplog):
    for iteration in (1, 2, 10):
        write_checkpoint(tmp_path, iteration)
    damage(tmp_path / "iter_10" / name)
    caplog.set_level("WARNING", "paddleseg_segformer")
    folder, manifest = newest_checkpoint(tmp_path)
    assert (folder.name, manifest["iteration"]) == ("iter_2", 2)
    assert "iter_10 is damaged" in caplog.text and name in caplog.text
    if name != checkpoint.MANIFEST or damage is not remove:
        with pytest.raises(InputError, match="iter_10: is damaged"):
            open_checkpoint(tmp_path / "iter_10", "iter_10")


def test_if_all_are_damaged_nothing_starts_from_scratch(tmp_path):
    assert newest_checkpoint(tmp_path / "absent") is None
    assert newest_checkpoint(tmp_path) is None
    write_checkpoint(tmp_path, 1)
    empty(tmp_path / "iter_1/model.pdopt")
    with pytest.raises(InputError, match="no intact checkpoint"):
        newest_checkpoint(tmp_path)


def test_a_changed_manifest_is_damaged_though_valid(tmp_path):
    write_checkpoint(tmp_path, 10)
    path = tmp_path / "iter_10" / checkpoint.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "seconds": manifest["seconds"] + 1}))
    with pytest.raises(InputError, match=r"is damaged .*does not match its checksum"):
        open_checkpoint(tmp_path / "iter_10", "iter_10")


def test_a_lost_origin_is_not_called_what_nobody_gave(tmp_path):
    """A run that started from another checkpoint, by --resume_model, is continued by --resume."""
    origin, folder = tmp_path / "iter_1", tmp_path / "run"
    write_checkpoint(tmp_path, 1)
    folder.mkdir()
    start_run(folder, origin)
    assert newest_checkpoint(folder)[1]["iteration"] == 1
    remove(origin / checkpoint.MANIFEST)
    expected = r"^--resume: .*iter_1, from which .*run started: has no manifest\.json"
    with pytest.raises(InputError, match=expected):
        newest_checkpoint(folder)


def test_only_intact_checkpoints_of_the_run_count_as_kept(tmp_path):
    for iteration in range(1, 6):
        newest = write_checkpoint(tmp_path, iteration)
    write_checkpoint(tmp_path, 9, run="another")
    truncate(tmp_path / "iter_4/model.pdopt")
    prune_checkpoints(tmp_path, 2, newest)
    assert {path.name for path in tmp_path.iterdir()} == {"iter_3", "iter_4", "iter_5", "iter_9"}
    prune_checkpoints(tmp_path, 0, newest)
    assert (tmp_path / "iter_3").exists()


def test_another_runs_checkpoints_are_not_resumed(tmp_path):
    write_checkpoint(tmp_path, 900, run="before")
    name = start_run(tmp_path)
    assert newest_checkpoint(tmp_path) is None
    assert count_checkpoints(tmp_path) == 0
    write_checkpoint(tmp_path, 5, run=name)
    assert newest_checkpoint(tmp_path)[0].name == "iter_5"
    assert count_checkpoints(tmp_path) == 1


@pytest.mark.parametrize("flip", range(0, 60, 3))
def test_a_bit_that_flips_in_the_registration_of_a_run(flip, tmp_path):
    """It neither hides the run's checkpoints nor lets a run without one start from scratch."""
    run = start_run(tmp_path)
    content = bytearray((tmp_path / "run.json").read_bytes())
    content[flip] ^= 4
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(InputError, match=r"--resume: .*run\.json is damaged"):
        newest_checkpoint(tmp_path)
    write_checkpoint(tmp_path, 5, run=run)
    assert newest_checkpoint(tmp_path)[0].name == "iter_5"


def test_a_run_that_has_not_saved_resumes_from_its_origin(tmp_path):
    write_checkpoint(tmp_path, 900, run="before")
    name = start_run(tmp_path, origin=tmp_path / "iter_900")
    assert newest_checkpoint(tmp_path)[1]["iteration"] == 900
    write_checkpoint(tmp_path, 901, run=name)
    assert newest_checkpoint(tmp_path)[1]["iteration"] == 901


def test_a_half_removed_checkpoint_is_not_loaded(tmp_path):
    newest = write_checkpoint(tmp_path, 2)
    write_checkpoint(tmp_path, 1).clear()
    (tmp_path / "iter_1").rename(tmp_path / "iter_1.removed")
    assert newest_checkpoint(tmp_path)[0].name == "iter_2"
    assert not (tmp_path / "iter_1.removed").exists()
    (tmp_path / "elsewhere").mkdir()
    write_checkpoint(tmp_path / "elsewhere", 1)
    (tmp_path / "iter_1").symlink_to(tmp_path / "elsewhere/iter_1")
    prune_checkpoints(tmp_path, 1, newest)
    assert not (tmp_path / "iter_1").exists()
    checkpoint.verify(tmp_path / "elsewhere/iter_1")


@pytest.fixture
def no_large_files():
    """A limit on file sizes, as a stand-in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_existing_checkpoints_unchanged(tmp_path, no_large_files):
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2)
    before = contents(tmp_path)
    for iteration in (2, 3):  # in place of an old one, and a new one
        with pytest.raises(RunError, match=rf"iter_{iteration}: cannot be saved"):
            write_checkpoint(tmp_path, iteration, size=1_000_000)
        assert contents(tmp_path) == before


@pytest.mark.parametrize("instant", ["writing", "replacing", "replaced"])
def test_a_process_killed_while_saving_leaves_an_intact_checkpoint(instant, tmp_path):
    """The three states in which a kill can leave a folder that is being replaced."""
    write_checkpoint(tmp_path, 3)
    old, new = tmp_path / "iter_3", tmp_path / "new"
    shutil.copytree(old, new)
    if instant == "writing":
        truncate(new / "model.pdopt")
        (new / checkpoint.MANIFEST).unlink()
        new.rename(tmp_path / "iter_3.partial")
    else:
        old.rename(tmp_path / "iter_3.replaced")
        new.rename(tmp_path / ("iter_3.partial" if instant == "replacing" else "iter_3"))
    assert newest_checkpoint(tmp_path)[0].name == "iter_3"
    assert [path.name for path in tmp_path.iterdir()] == ["iter_3"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        open_checkpoint(tmp_path / "iter_1", "iter_1")
    (tmp_path / "iter_1").mkdir()
    with pytest.raises(InputError, match=r"is not a checkpoint .* model\.pretrained"):
        open_checkpoint(tmp_path / "iter_1", "iter_1")


def test_paddleseg_s_checkpoints_cannot_be_resumed_but_started_from(tmp_path):
    for name in ("iter_1", "iter_2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.pdparams").write_bytes(b"")
    with pytest.raises(InputError, match=r"another folder, with model.pretrained=.*iter_2"):
        newest_checkpoint(tmp_path)


def test_the_manifest_is_json_that_others_can_read(tmp_path):
    write_checkpoint(tmp_path, 1)
    manifest = json.loads((tmp_path / "iter_1" / checkpoint.MANIFEST).read_text())
    described = manifest["files"]["model.pdparams"]
    assert described["bytes"] == (tmp_path / "iter_1/model.pdparams").stat().st_size
    assert len(described["sha256"]) == 64
