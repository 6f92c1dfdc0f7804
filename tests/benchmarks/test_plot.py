"""benchmarks/plot.py."""

import json
import re

import pytest
from run_tools import run_tool

pytestmark = pytest.mark.integration


def test_models_are_labeled_in_any_order(tmp_path):
    """Some of the models, not in order of size; an SVG file has its texts as comments."""
    files = [tmp_path / f"{name}.json" for name in ("B3", "B1")]
    for file in files:
        rows = [{"name": "ours", "gmacs": 20.0}]
        file.write_text(json.dumps({"spec": {"backbone": file.stem}, "rows": rows}))
    done = run_tool("plot", "models", *files, "--output", tmp_path / "models.svg")
    assert done.returncode == 0, done.stderr
    svg = (tmp_path / "models.svg").read_text()
    assert re.findall(r"<!-- (B\d) -->", svg) == ["B1", "B3"]
