"""Output paths that cannot be written to, and full disks."""

import pytest

from .cases import Case, check, table


def at(tool, where):
    """A tool with this output path, where ``{}`` is the workspace."""

    def make(workspace):
        workspace.write("file", b"content")
        target = where.format(workspace.root)
        best = ["--model_path", workspace.root / "run/best_model"]
        return {
            "train": ["--save_dir", target, *workspace.with_opts()],
            "predict": [*workspace.predict(workspace.image()), "--save_dir", target],
            "export": [*best, "--image_path", workspace.image(), "--save_dir", target],
            "convert": [workspace.root / "run/best_model/model.pdparams", f"{target}/a.pdparams"],
            "make_scenes": ["--save_dir", target, "--train", 1, "--val", 1, "--size", 96, 96],
            "val": [*workspace.with_opts(), *best, "--json", f"{target}/a.json"],
            "report": [*workspace.with_opts(), *best, "--report", target],
        }[tool]

    return make


TOOLS = ("train", "predict", "export", "convert", "make_scenes", "val", "report")
WHERE = {
    "a file": ("{}/file", "File exists"),
    "within a file": ("{}/file/out", "Not a directory"),
    "not writable": ("/proc/nowhere", "No such file or directory"),
    "a name that is too long": ("{}/" + 300 * "a", "File name too long"),
}
FLAGS = {"convert": "", "val": "--json ", "report": "--report "}
INVALID = [
    Case(
        f"{tool}, {name}",
        tool.replace("report", "val"),
        at(tool, where),
        f"{FLAGS.get(tool, '--save_dir ')}{where}…: cannot be written …{reason}",
    )
    for tool in TOOLS
    for name, (where, reason) in WHERE.items()
]
INVALID += [
    Case(
        "convert to a folder",
        "convert",
        lambda p: [p.root / "run/best_model", p.root],
        "{}: must end in .pdparams or .safetensors.",
    ),
    Case(
        "convert to another suffix",
        "convert",
        lambda p: [p.root / "run/best_model", p.out / "a.txt"],
        "{}/out/a.txt: must end in .pdparams or .safetensors.",
    ),
    Case(
        "convert to an existing file",
        "convert",
        lambda p: [p.root / "run/best_model", p.write("a.pdparams")],
        "{}/a.pdparams: exists",
    ),
    Case(
        "--json of a folder",
        "val",
        lambda p: [*p.with_opts(), "--model_path", p.root / "run/best_model", "--json", p.root],
        "--json {}: cannot be written (Is a directory)",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)


# Exit code of each tool on a full disk, simulated by a limit of file sizes.
FULL_DISK_CODES = {
    "train": 1,
    "predict": 1,
    "export": 1,
    "convert": 2,
    "make_scenes": 1,
    "report": 1,
}


@pytest.mark.parametrize("tool", FULL_DISK_CODES)
def test_full_disk(tool, workspace, tools):
    arguments = at(tool, "{}/out")(workspace)
    before = workspace.files()
    limit = 50_000 if tool == "export" else 3000  # Paddle writes a graph of more than 3000 bytes
    result = tools(tool.replace("report", "val"), arguments, max_file_bytes=limit)
    print(result.code, result.err)
    assert result.code == FULL_DISK_CODES[tool], result.err[-3000:]
    assert "Traceback" not in result.err and len(result.err.splitlines()) <= 3
    assert str(workspace.out) in result.err
    left = [path.name for path in workspace.files().keys() - before.keys()]
    assert not [name for name in left if "partial" in name or name.endswith((".pdparams", ".onnx"))]
