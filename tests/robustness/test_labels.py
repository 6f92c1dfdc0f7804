"""Labels that training cannot use, and odd ones that it can."""

import numpy as np
import pytest
from PIL import Image

from .cases import SIZE, Case, check, table, works


def label(array, tool="train", name="labels/0.png", ending="PNG"):
    """A tool on the place with this label in one pair."""

    def make(place):
        Image.fromarray(array).save(place.root / name, ending)
        return place.train() if tool == "train" else place.with_opts()

    return make


def content(data):
    def make(place):
        place.label().write_bytes(data(place.label().read_bytes()))
        return place.train()

    return make


SQUARE = np.zeros([SIZE, SIZE], "uint8")
WRONG = [
    Case(
        "another size",
        "train",
        label(SQUARE[:, :-1]),
        ("labels/0.png", "63x64", "64x64"),
        alone=True,
    ),
    Case("the size turned", "train", label(np.zeros([32, 64], "uint8")), "labels/0.png"),
    Case("RGB", "train", label(np.zeros([SIZE, SIZE, 3], "uint8")), "labels/0.png"),
    Case("RGBA", "train", label(np.zeros([SIZE, SIZE, 4], "uint8")), "labels/0.png"),
    Case("out of range", "train", label(SQUARE + 3), ("labels/0.png", "label 3", "num_classes")),
    Case(
        "out of range, to check",
        "check_dataset",
        label(SQUARE + 3, "check"),
        "labels/0.png: label 3",
    ),
    Case("16 bits, out of range", "train", label(SQUARE.astype("uint16") + 256), "labels/0.png"),
    Case("floats", "train", label(SQUARE.astype("float32"), ending="TIFF"), "labels/0.png"),
    Case("empty", "train", content(lambda data: b""), "labels/0.png"),
    Case("text", "train", content(lambda data: b"not a picture"), "labels/0.png"),
    Case("truncated", "train", content(lambda data: data[: len(data) // 2]), "labels/0.png"),
]


@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)


RIGHT = {
    "16 bits": SQUARE.astype("uint16") + 2,
    "1 bit": SQUARE > 0,
    "one of them ignored": SQUARE + 255,
}


@pytest.mark.parametrize("array", RIGHT.values(), ids=RIGHT)
def test_right(array, place, tools):
    Image.fromarray(array).save(place.label())
    works("train", [*place.train(), "--do_eval"], tools)
    works("check_dataset", place.with_opts(), tools)


def test_the_indices_of_a_palette_count(place, tools):
    picture = Image.fromarray(SQUARE + 2, mode="P")
    picture.putpalette([200, 10, 90] * 256)
    picture.save(place.label())
    works("train", place.train(), tools)


def test_labels_without_any_class_get_a_warning(place, tools):
    for i in range(4):
        Image.fromarray(SQUARE + 255).save(place.label(i))
    done = works("train", place.train(), tools)
    assert "train_dataset: all pixels in the 4 sampled labels are ignored" in done.out
