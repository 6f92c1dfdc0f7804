"""File lists: variants of other editors and systems are valid, malformed lines are named."""

import os
import shutil

import pytest

from .cases import Case, check, succeeds, table

PAIRS = [f"images/{i}.png labels/{i}.png" for i in range(4)]


def listed(*lines, end="\n"):
    """``train`` with a list of these lines."""

    def make(workspace):
        workspace.write_list(lines, end=end)
        return workspace.train()

    return make


def content(data):
    def make(workspace):
        (workspace.root / "train.txt").write_bytes(data)
        return workspace.train()

    return make


def missing(workspace):
    (workspace.root / "train.txt").unlink()
    return workspace.train()


def directory(workspace):
    (workspace.root / "train.txt").unlink()
    (workspace.root / "train.txt").mkdir()
    return workspace.train()


def pipe(workspace):
    (workspace.root / "train.txt").unlink()
    os.mkfifo(workspace.root / "train.txt")
    return workspace.train()


def nothing_to_evaluate(workspace):
    workspace.write_list([], "val")
    report = ["--report", workspace.root / "report"]
    return [*workspace.with_opts(), "--model_path", workspace.root / "run/best_model", *report]


INVALID = [
    Case(
        "missing",
        "train",
        missing,
        "{}/train.txt: cannot be read as a list (No such file or directory).",
    ),
    Case(
        "a directory",
        "train",
        directory,
        "{}/train.txt: cannot be read as a list (Is a directory).",
    ),
    Case("a pipe", "train", pipe, "{}/train.txt: cannot be read as a list (not a file)."),
    Case(
        "empty",
        "train",
        content(b""),
        "The config cannot be built: The number of samples in train_dataset is 0. Please",
    ),
    Case(
        "nothing to evaluate",
        "val",
        nothing_to_evaluate,
        "val_dataset: has no images; check its dataset_root and file list.",
    ),
    Case(
        "empty, check_dataset",
        "check_dataset",
        lambda p: content(b"")(p)[2:],
        "The config cannot be built: The number of samples in train_dataset is 0. Please",
    ),
    Case(
        "only blank lines",
        "train",
        content(b"\n \n\t\n"),
        "The config cannot be built: The number of samples in train_dataset is 0. Please",
    ),
    Case("binary", "train", content(bytes(range(256))), "{}/train.txt: is not a UTF-8 text file"),
    Case(
        "UTF-16",
        "train",
        content("\n".join(PAIRS).encode("utf-16")),
        "{}/train.txt: is not a UTF-8 text file",
    ),
    Case(
        "one column", "train", listed(*PAIRS, "images/0.png"), "{}/train.txt: line 5 has 1 columns"
    ),
    Case(
        "three columns",
        "train",
        listed(f"{PAIRS[0]} edges/0.png"),
        "{}/train.txt: line 1 has 3 columns",
    ),
    Case(
        "comma separators",
        "train",
        listed("images/0.png,labels/0.png"),
        "{}/train.txt: line 1 has 1 columns",
    ),
    Case(
        "spaces in names", "train", listed("a b.png c d.png"), "{}/train.txt: line 1 has 4 columns"
    ),
    Case(
        "a missing image",
        "train",
        listed(*PAIRS, "images/9.png labels/0.png"),
        "train_dataset: {}/images/9.png does not exist as a file",
    ),
    Case(
        "a missing label",
        "train",
        listed(*PAIRS, "images/0.png labels/9.png"),
        "train_dataset: {}/labels/9.png does not exist as a file",
    ),
    Case(
        "a folder as image",
        "train",
        listed(PAIRS[0], "images labels"),
        "train_dataset: {}/images does not exist as a file, nor do 1 other files",
    ),
    Case(
        "a NUL character",
        "train",
        listed("images/0\0.png labels/0.png"),
        "train_dataset: {}/images/0\\x00.png does not exist as a file",
    ),
    Case(
        "label and image swapped",
        "train",
        listed("labels/0.png images/0.png"),
        "{}/images/0.png: must be a single-channel 8-bit image",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)


VALID = {
    "blank lines": (["", *PAIRS, "", "  "], "\n"),
    "a byte order mark": (["\ufeff" + PAIRS[0], *PAIRS[1:]], "\n"),
    "Windows' line ends": (PAIRS, "\r\n"),
    "tabs and columns": ([pair.replace(" ", " \t ") for pair in PAIRS], "\n"),
    "twice": (PAIRS * 2, "\n"),
    "paths with ..": ([f"../{{here}}/{pair}" for pair in PAIRS], "\n"),
    "absolute paths": (["{root}/images/0.png {root}/labels/0.png"], "\n"),
}


@pytest.mark.parametrize("lines, end", VALID.values(), ids=VALID)
def test_valid(lines, end, workspace, tools):
    lines = [line.format(here=workspace.root.name, root=workspace.root) for line in lines]
    workspace.write_list(lines, end=end)
    succeeds("train", workspace.train(), tools)
    pairs = sum(bool(line.strip()) for line in lines)
    shutil.rmtree(workspace.out)
    checked = succeeds("check_dataset", workspace.with_opts(), tools)
    assert f"train_dataset: {pairs} images" in checked.out


def test_names_with_spaces_and_another_separator(workspace, tools):
    for folder in ("images", "labels"):
        shutil.move(workspace.root / folder / "0.png", workspace.root / folder / "zwei Bäume.png")
    workspace.write_list(["images/zwei Bäume.png,labels/zwei Bäume.png"])
    succeeds("train", workspace.train("train_dataset.separator=','"), tools)
