"""Converted checkpoints have the source's tensors, and are written atomically."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fixtures import FORMATS

import paddleseg_segformer as ps
from paddleseg_segformer.weights import convert_checkpoint, read_weights

from .test_formats import arrays, random_model


@pytest.fixture(scope="module")
def source():
    write, projection = FORMATS["mmseg"]
    model = random_model("B0", projection)
    return arrays(model), write(arrays(model), 19)


@pytest.mark.parametrize("ending", ["pdparams", "safetensors"])
def test_target_holds_the_source(source, ending, tmp_path):
    ours, state = source
    target = tmp_path / f"model.{ending}"
    checkpoint, tensors, parameters = convert_checkpoint(state, target)
    assert (checkpoint.format, tensors) == ("mmseg", len(ours))
    statistics = [name for name in ours if name.endswith(("._mean", "._variance"))]
    assert parameters == sum(v.size for n, v in ours.items() if n not in statistics)
    written = read_weights(target)
    assert written.format == "paddleseg" and written.state.keys() == ours.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(written.state[name], value)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_existing_files_are_kept_unless_forced(source, tmp_path):
    target = tmp_path / "model.pdparams"
    target.write_bytes(b"precious")
    with pytest.raises(ps.InputError, match="--force"):
        convert_checkpoint(source[1], target)
    assert target.read_bytes() == b"precious"
    convert_checkpoint(source[1], target, force=True)
    assert read_weights(target).architecture.variant == "B0"


@pytest.mark.parametrize("target", ["model.bin", "file/model.pdparams"])
def test_bad_targets(source, target, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ps.InputError, match=f"{tmp_path}/{target.split('/')[0]}"):
        convert_checkpoint(source[1], tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.integration
def test_the_tool_reports_an_error_in_one_sentence(tmp_path):
    bad = tmp_path / "page.pth"
    bad.write_bytes(b"<!DOCTYPE html>")
    done = subprocess.run(
        [sys.executable, "tools/convert.py", str(bad), str(tmp_path / "out.pdparams")],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {bad}: is a web page")
    assert "Traceback" not in done.stderr and len(list(tmp_path.iterdir())) == 1


def test_incomplete_models_are_not_written(source, tmp_path):
    ours = {name: value for name, value in source[0].items() if "block3.0." not in name}
    with pytest.raises(ps.InputError, match=r"lacks backbone\.block3\.0\."):
        convert_checkpoint(ours, tmp_path / "m.pdparams")
    assert not list(tmp_path.iterdir())
