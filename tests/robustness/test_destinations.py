"""Places that cannot be written to, or not to the end."""

import pytest

from .cases import Case, check, table

BEHIND_A_FILE = "file/out"


def at(tool, where):
    """A tool whose results are to go there: ``{}`` stands for the place."""

    def make(place):
        place.write("file", b"mine")
        target = where.format(place.root)
        best = ["--model_path", place.root / "run/best_model"]
        return {
            "train": ["--save_dir", target, *place.with_opts()],
            "predict": [*place.predict(place.image()), "--save_dir", target],
            "export": [*best, "--image_path", place.image(), "--save_dir", target],
            "convert": [place.root / "run/best_model/model.pdparams", f"{target}/a.pdparams"],
            "make_scenes": ["--save_dir", target, "--train", 1, "--val", 1, "--size", 96, 96],
            "val": [*place.with_opts(), *best, "--json", f"{target}/a.json"],
            "report": [*place.with_opts(), *best, "--report", target],
        }[tool]

    return make


TOOLS = ("train", "predict", "export", "convert", "make_scenes", "val", "report")
WHERE = {
    "a file": "{}/file",
    "behind a file": "{}/file/out",
    "where nobody can write": "/proc/nowhere",
    "a name that is too long": "{}/" + 300 * "a",
}
WRONG = [
    Case(f"{tool}, {name}", tool.replace("report", "val"), at(tool, where), where.strip("{}")[:20])
    for tool in TOOLS
    for name, where in WHERE.items()
]
WRONG += [
    Case(
        "convert to a folder", "convert", lambda p: [p.root / "run/best_model", p.root], "must end"
    ),
    Case(
        "convert to another kind",
        "convert",
        lambda p: [p.root / "run/best_model", p.out / "a.txt"],
        ".safetensors",
    ),
    Case(
        "convert over a file",
        "convert",
        lambda p: [p.root / "run/best_model", p.write("a.pdparams")],
        "--force",
    ),
    Case(
        "figures in a folder",
        "val",
        lambda p: [*p.with_opts(), "--model_path", p.root / "run/best_model", "--json", p.root],
        "--json",
    ),
]


@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)


# What a limit of the size of files stands in for; see ``errors.RunError``.
FULL = {"train": 1, "predict": 1, "export": 1, "convert": 2, "make_scenes": 1, "report": 1}


@pytest.mark.parametrize("tool", FULL)
def test_a_disk_that_fills_up(tool, place, tools):
    arguments = at(tool, "{}/out")(place)
    before = place.files()
    limit = 50_000 if tool == "export" else 3000  # Paddle's own notes of a graph have thousands
    done = tools(tool.replace("report", "val"), arguments, largest_file=limit)
    print(done.code, done.err)
    assert done.code == FULL[tool], done.err[-3000:]
    assert "Traceback" not in done.err and len(done.err.splitlines()) <= 3
    assert str(place.out) in done.err
    left = [path.name for path in place.files().keys() - before.keys()]
    assert not [name for name in left if "partial" in name or name.endswith((".pdparams", ".onnx"))]
