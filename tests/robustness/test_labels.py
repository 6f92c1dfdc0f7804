"""Invalid labels, and unusual valid ones."""

import cv2
import numpy as np
import pytest
from PIL import Image

from .cases import SIZE, Case, check, succeeds, table


def label(array, tool="train", name="labels/0.png", ending="PNG"):
    """A tool on a data set with this label of one image."""

    def make(workspace):
        Image.fromarray(array).save(workspace.root / name, ending)
        return workspace.train() if tool == "train" else workspace.with_opts()

    return make


def content(data):
    def make(workspace):
        workspace.label().write_bytes(data(workspace.label().read_bytes()))
        return workspace.train()

    return make


def all_ignored(workspace):
    for i in range(4):
        cv2.imwrite(str(workspace.label(i)), SQUARE + 255)
    outputs = ["--report", workspace.root / "report", "--json", workspace.root / "a.json"]
    return [*workspace.with_opts(), "--model_path", workspace.root / "run/best_model", *outputs]


SQUARE = np.zeros([SIZE, SIZE], "uint8")
INVALID = [
    Case(
        "nothing to evaluate",
        "val",
        all_ignored,
        "val_dataset: all pixels of its labels have the ignore index 255, so that there is nothing",
    ),
    Case(
        "another size",
        "train",
        label(SQUARE[:, :-1]),
        "{}/labels/0.png: is 63x64",
    ),
    Case(
        "another height", "train", label(np.zeros([32, 64], "uint8")), "{}/labels/0.png: is 64x32"
    ),
    Case(
        "RGB",
        "train",
        label(np.zeros([SIZE, SIZE, 3], "uint8")),
        "{}/labels/0.png: must be a single-channel 8-bit image",
    ),
    Case(
        "RGBA",
        "train",
        label(np.zeros([SIZE, SIZE, 4], "uint8")),
        "{}/labels/0.png: must be a single-channel 8-bit image",
    ),
    Case(
        "out of range",
        "train",
        label(SQUARE + 3),
        "{}/labels/0.png: label 3 is neither a class (0 to 2) nor ignored (255)",
    ),
    Case(
        "out of range, check_dataset",
        "check_dataset",
        label(SQUARE + 3, "check"),
        "{}/labels/0.png: label 3 is neither a class (0 to 2) nor ignored (255); the labels have "
        "the values 0, 1, 2 and 3: if 0 is a class, set num_classes: 4; if it is unlabeled ",
    ),
    Case(
        "16 bits, out of range",
        "train",
        label(SQUARE.astype("uint16") + 256),
        "{}/labels/0.png: must be a single-channel 8-bit image",
    ),
    Case(
        "floats",
        "train",
        label(SQUARE.astype("float32"), ending="TIFF"),
        "{}/labels/0.png: must be a single-channel 8-bit image",
    ),
    Case(
        "empty",
        "train",
        content(lambda data: b""),
        "{}/labels/0.png: cannot be read as an image (cannot identify image file",
    ),
    Case(
        "text",
        "train",
        content(lambda data: b"not a picture"),
        "{}/labels/0.png: cannot be read as an image (cannot identify image file",
    ),
    Case(
        "truncated",
        "train",
        content(lambda data: data[: len(data) // 2]),
        "{}/labels/0.png: cannot be read as an image (image file is truncated).",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)


VALID = {
    "16 bits": SQUARE.astype("uint16") + 2,
    "1 bit": SQUARE > 0,
    "one label all ignored": SQUARE + 255,
}


@pytest.mark.parametrize("array", VALID.values(), ids=VALID)
def test_valid(array, workspace, tools):
    Image.fromarray(array).save(workspace.label())
    succeeds("train", [*workspace.train(), "--do_eval"], tools)
    succeeds("check_dataset", workspace.with_opts(), tools)


def test_palette_images_are_read_as_indices(workspace, tools):
    picture = Image.fromarray(SQUARE + 2, mode="P")
    picture.putpalette([200, 10, 90] * 256)
    picture.save(workspace.label())
    succeeds("train", workspace.train(), tools)


def all_ignored(workspace):
    for i in range(4):
        Image.fromarray(SQUARE + 255).save(workspace.label(i))
    return workspace.train()


def test_labels_without_classes(workspace, tools):
    expected = "train_dataset: the 4 sampled labels have the value 255, so that all pixels are ig"
    check(Case("all ignored", "train", all_ignored, expected), workspace, tools)
