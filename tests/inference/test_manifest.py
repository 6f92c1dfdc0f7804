"""What a manifest may hold: each entry is checked before any is used."""

import json

import pytest
from valid_manifest import VALID

from paddleseg_segformer.errors import InputError
from paddleseg_segformer.inference import manifest
from paddleseg_segformer.inference.manifest import ManifestError

NAN, DEEP = float("nan"), []
for _ in range(60):
    DEEP = [DEEP]
COUNTS = ("seed", "iteration", "samples", "evaluated", "evaluations_since_best", "skipped_in_a_row")
INVALID = {
    **dict.fromkeys(COUNTS, (-1, 1.5, "1", True, 10**30, 1 << 63, NAN)),
    "config": ([], "a", DEEP, {"a": DEEP}),
    "classes": ("ab", [1], [["a"]], {}),
    "palette": ([0], [[0, 0]], [[0, 0, 256]], [[0, 0, -1]], [[0, 0, 0.5]], []),
    "image_types": ("uint8", [8], {}),
    "arrangement": ([],),
    "versions": ("3.9",),
    "optimizer": (3, []),
    "parameters": ([], {"a": 1}, {"a": "x", "b": "x"}),
    "run": (1, ["6f"]),
    "skipped": ({}, {"steps": 0}, {"steps": -1, "samples": 0}, [0, 0]),
    "best": (
        [],
        {"miou": NAN, "iteration": 2},
        {"miou": "1", "iteration": 2},
        {"miou": 0.5},
        {"iteration": 2},
        {"miou": 0.5, "ema_iteration": 2},
        {"miou": 0.5, "iteration": 1.5},
        {"miou": 0.5, "iteration": 5},  # after the manifest's
        {"other": 1},
    ),
    "seconds": (-1, NAN, float("inf"), "1", 10**400),
    "scaler": ([], {"scale": 1.0}, {"scale": None}),
    "files": (
        [],
        {"a": 3},
        {"a": {"sha256": "ab"}},
        {"../a": {"bytes": 3, "sha256": "ab"}},
        {"": {"bytes": 3, "sha256": "ab"}},
    ),
}
CASES = [(key, value) for key, values in INVALID.items() for value in (*values, None)]
OPTIONAL = ("image_types",)  # of runs of before it was introduced
CASES = [(key, value) for key, value in CASES if key not in OPTIONAL or value is not None]


def read(tmp_path, content, keys=manifest.ENTRIES):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content))
    content = manifest.parse(path)
    manifest.check(content, keys, path)
    return content


def test_a_valid_manifest(tmp_path):
    assert read(tmp_path, VALID) == VALID
    scaler = {"scale": 65536.0, "incr_ratio": 2.0, "decr_ratio": 0.5, "incr_count": 0}
    read(tmp_path, {**VALID, "best": {}, "scaler": {**scaler, "decr_count": 0, "dynamic": True}})
    for key in OPTIONAL:
        read(tmp_path, {k: v for k, v in VALID.items() if k != key})
    assert {*VALID} == {*manifest.ENTRIES} == {*INVALID}


@pytest.mark.parametrize("key, value", CASES, ids=str)
def test_an_invalid_entry(key, value, tmp_path):
    without = {k: v for k, v in VALID.items() if k != key}
    for content in [{**VALID, key: value}, without][: 2 - (key in OPTIONAL)]:
        with pytest.raises(ManifestError, match=r"manifest\.json has .*(" + key + "|iteration)"):
            read(tmp_path, content)


def test_only_the_entries_that_are_used_are_checked(tmp_path):
    used = ("config", "classes", "palette")
    read(tmp_path, {key: VALID[key] for key in used}, used)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", "[" * 100_000, '{"a": ' * 100_000, "\udcff", " " * (17 << 20)],
)
def test_what_is_no_manifest(text, tmp_path):
    path = tmp_path / "manifest.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ManifestError, match="is missing or unreadable"):
        manifest.parse(path)
    with pytest.raises(ManifestError, match="is missing or unreadable"):
        manifest.parse(tmp_path)  # a folder


def test_a_newer_format(tmp_path):
    with pytest.raises(InputError, match=r"manifest\.json: is of a newer version"):
        read(tmp_path, {**VALID, "format": manifest.FORMAT + 1})
    for version in ("2", -1, None, 1.5):
        with pytest.raises(ManifestError, match="no valid format"):
            read(tmp_path, {**VALID, "format": version})
