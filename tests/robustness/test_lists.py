"""Lists of files: what an editor or another system does to them works, what is wrong is named."""

import shutil

import pytest

from .cases import Case, check, table, works

PAIRS = [f"images/{i}.png labels/{i}.png" for i in range(4)]


def listed(*lines, end="\n"):
    """``train`` on a list of these lines."""

    def make(place):
        place.write_list(lines, end=end)
        return place.train()

    return make


def content(data):
    def make(place):
        (place.root / "train.txt").write_bytes(data)
        return place.train()

    return make


def missing(place):
    (place.root / "train.txt").unlink()
    return place.train()


def directory(place):
    (place.root / "train.txt").unlink()
    (place.root / "train.txt").mkdir()
    return place.train()


WRONG = [
    Case("missing", "train", missing, "train.txt", alone=True),
    Case("a directory", "train", directory, "train.txt"),
    Case("empty", "train", content(b""), "train_dataset"),
    Case("empty, to check", "check_dataset", lambda p: content(b"")(p)[2:], "train_dataset"),
    Case("blank lines alone", "train", content(b"\n \n\t\n"), "train_dataset"),
    Case("binary", "train", content(bytes(range(256))), "train.txt"),
    Case("UTF-16", "train", content("\n".join(PAIRS).encode("utf-16")), "train.txt"),
    Case("one column", "train", listed(*PAIRS, "images/0.png"), ("train.txt", "line 5")),
    Case("three columns", "train", listed(f"{PAIRS[0]} edges/0.png"), ("train.txt", "line 1")),
    Case("commas", "train", listed("images/0.png,labels/0.png"), ("train.txt", "separator")),
    Case("blanks in names", "train", listed("a b.png c d.png"), ("train.txt", "separator")),
    Case(
        "an image is missing", "train", listed(*PAIRS, "images/9.png labels/0.png"), "images/9.png"
    ),
    Case(
        "a label is missing", "train", listed(*PAIRS, "images/0.png labels/9.png"), "labels/9.png"
    ),
    Case("a folder in it", "train", listed(PAIRS[0], "images labels"), "images"),
    Case("a NUL in it", "train", listed("images/0\0.png labels/0.png"), "images/0"),
    Case("label and image", "train", listed("labels/0.png images/0.png"), "images/0.png"),
]


@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)


RIGHT = {
    "blank lines": (["", *PAIRS, "", "  "], "\n"),
    "a byte order mark": (["\ufeff" + PAIRS[0], *PAIRS[1:]], "\n"),
    "Windows' line ends": (PAIRS, "\r\n"),
    "tabs and columns": ([pair.replace(" ", " \t ") for pair in PAIRS], "\n"),
    "twice": (PAIRS * 2, "\n"),
    "paths that go up": ([f"../{{here}}/{pair}" for pair in PAIRS], "\n"),
    "absolute paths": (["{root}/images/0.png {root}/labels/0.png"], "\n"),
}


@pytest.mark.parametrize("lines, end", RIGHT.values(), ids=RIGHT)
def test_right(lines, end, place, tools):
    lines = [line.format(here=place.root.name, root=place.root) for line in lines]
    place.write_list(lines, end=end)
    works("train", place.train(), tools)
    pairs = sum(bool(line.strip()) for line in lines)
    shutil.rmtree(place.out)
    checked = works("check_dataset", place.with_opts(), tools)
    assert f"train_dataset: {pairs} images" in checked.out


def test_names_with_blanks_and_another_separator(place, tools):
    for folder in ("images", "labels"):
        shutil.move(place.root / folder / "0.png", place.root / folder / "zwei Bäume.png")
    place.write_list(["images/zwei Bäume.png,labels/zwei Bäume.png"])
    works("train", place.train("train_dataset.separator=','"), tools)
