"""Output paths that cannot be written to, and full disks."""

import re
import shutil

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
            "masks_from_colors": [workspace.color_masks(), "colored", target],
            "split_dataset_list": [target, workspace.root / "images", workspace.root / "labels"],
        }[tool]

    return make


TOOLS = ("train", "predict", "export", "convert", "make_scenes", "val", "report")
TOOLS += ("masks_from_colors",)
WHERE = {
    "a file": ("{}/file", "File exists"),
    "within a file": ("{}/file/out", "Not a directory"),
    "not writable": ("/proc/nowhere", "No such file or directory"),
    "a name that is too long": ("{}/" + 300 * "a", "File name too long"),
}
FLAGS = {
    "convert": "target ",
    "val": "--json ",
    "report": "--report ",
    "masks_from_colors": "target ",
}
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


def list_is_a_folder(workspace):
    (workspace.root / "train.txt").unlink()
    (workspace.root / "train.txt").mkdir()
    return [workspace.root, "images", "labels", "--force"]


INVALID += [
    Case(
        "a list that is a folder",
        "split_dataset_list",
        list_is_a_folder,
        "{}/train.txt: is a folder, where the list is to be; rename it.",
    ),
    Case(
        "lists into a folder that is not writable",
        "split_dataset_list",
        lambda p: ["/proc/self", p.root / "images", p.root / "labels"],
        "dataset_root /proc/self: cannot be written to (No such file or directory)",
    ),
    Case(
        "a loop of links",
        "val",
        lambda p: [
            *p.with_opts(),
            *("--model_path", p.root / "run/best_model"),
            *("--json", p.link_to_itself("loop") / "a.json"),
        ],
        "--json {}/loop…: cannot be written to (File exists)",
    ),
    Case(
        "a loop of links, predict",
        "predict",
        lambda p: [*p.predict(p.image()), "--save_dir", p.link_to_itself("loop")],
        "--save_dir {}/loop: cannot be written to (File exists)",
    ),
    Case(
        "a loop of links, masks",
        "masks_from_colors",
        lambda p: [p.color_masks(), "colored", p.link_to_itself("loop")],
        "target {}/loop: cannot be written to (File exists)",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)


# A full disk is simulated by a limit of file sizes. Paddle writes a graph of more than 3000 bytes;
# masks and metrics are of less.
LIMITS = {"export": 50_000, "masks_from_colors": 100, "val": 100}


@pytest.mark.parametrize("tool", TOOLS)
def test_full_disk(tool, workspace, tools):
    arguments = at(tool, "{}/out")(workspace)
    if tool == "report":  # an earlier one, whose page would show the new images
        workspace.write("out/report.html")
    before = workspace.files()
    limit = LIMITS.get(tool, 3000)
    result = tools(tool.replace("report", "val"), arguments, max_file_bytes=limit)
    print(result.code, result.err)
    assert result.code == 1, result.err[-3000:]
    assert "Traceback" not in result.err and len(result.err.splitlines()) <= 3
    assert str(workspace.out) in result.err
    assert not re.search(r"Errno|partial|/tmp\w+/deploy", result.err)
    left = [path.name for path in workspace.files().keys() - before.keys()]
    assert not left or tool != "masks_from_colors"  # no half of a mask
    assert not [name for name in left if "partial" in name or name.endswith((".pdparams", ".onnx"))]
    assert not (workspace.out / "report.html").exists()
    assert tool != "convert" or not workspace.out.exists()


FULL = "error: Standard output cannot be written (No space left on device)."


@pytest.mark.parametrize(
    "tool", ["val", "convert", "make_scenes", "masks_from_colors", "check_dataset"]
)
def test_full_standard_output(tool, workspace, tools):
    """What is printed is the result, or follows it."""
    arguments = workspace.with_opts() if tool == "check_dataset" else at(tool, "{}/out")(workspace)
    with open("/dev/full", "w") as full:
        result = tools(tool, arguments, stdout=full)
    assert (result.code, result.err.splitlines()[-1]) == (1, FULL)
    assert tool == "check_dataset" or any(path.is_file() for path in workspace.out.rglob("*"))


def test_help_into_a_full_standard_output(tools):
    with open("/dev/full", "w") as full:
        assert tools("convert", ["--help"], stdout=full)[::2] == (1, f"{FULL}\n")


def test_a_full_disk_leaves_lists_as_they_are(workspace, tools):
    """The second one cannot be written; the first one must not be replaced alone."""
    long = workspace.root / ("long" * 25)
    for folder in ("images", "labels"):
        shutil.copytree(workspace.root / folder, long / folder)
    before = workspace.files()
    folders = [long / "images", long / "labels"]
    arguments = [workspace.root, *folders, "--force", "--split", 0.25, 0.75, 0]
    result = tools("split_dataset_list", arguments, max_file_bytes=400)  # of 240 and 720 bytes
    assert result.code == 1
    assert result.err == f"error: {workspace.root}: cannot be written (File too large).\n"
    assert workspace.files() == before


@pytest.mark.parametrize("tool", ["train", "predict", "export", "report"])
def test_what_is_refused_leaves_no_folder(tool, workspace, tools):
    (workspace.root / "run/best_model/model.pdparams").write_bytes(b"")
    (workspace.root / "images/0.png").write_bytes(b"")
    arguments = at(tool, "{}/new/out")(workspace)
    result = tools(tool.replace("report", "val"), arguments)
    assert result.code == 2, result.err
    assert not (workspace.root / "new").exists()
