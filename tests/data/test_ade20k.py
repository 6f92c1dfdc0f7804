"""ADE20K: reading its layout, and an error for each invalid one."""

import cv2
import numpy as np
import pytest
from shared import ADE20K_SAMPLE, needs_shared

from paddleseg_segformer import ADE20K, InputError


@pytest.fixture
def tree(tmp_path):
    """Two 6x8 images; annotations with the values 0, 1 and 150."""
    for kind in ("images", "annotations"):
        (tmp_path / kind / "training").mkdir(parents=True)
    annotation = np.zeros([6, 8], dtype="uint8")
    annotation[1], annotation[2] = 1, 150
    for name in ("b", "a"):
        image = np.full([6, 8, 3], (10, 20, 30), dtype="uint8")  # OpenCV: blue 10, red 30
        cv2.imwrite(str(tmp_path / f"images/training/{name}.jpg"), image)
        cv2.imwrite(str(tmp_path / f"annotations/training/{name}.png"), annotation)
    return tmp_path


def test_sample(tree):
    dataset = ADE20K((), tree, mode="train")
    assert len(dataset) == 2 and dataset.file_list[0][0].endswith("a.jpg")
    sample = dataset[0]
    assert sample["img"].shape == (3, 6, 8)
    np.testing.assert_allclose(sample["img"].mean(axis=(1, 2)), [30, 20, 10], atol=2)  # RGB
    assert sample["img"].dtype == np.float32
    assert [set(row) for row in sample["label"]] == [{255}, {0}, {149}, {255}, {255}, {255}]


def annotate(tree, annotation):
    cv2.imwrite(str(tree / "annotations/training/a.png"), annotation.astype("uint8"))


@pytest.mark.parametrize(
    "corrupt, path",
    [
        (lambda t: (t / "annotations/training/b.png").unlink(), "images/training/b.jpg"),
        (lambda t: [f.unlink() for f in (t / "images/training").iterdir()], "images/training"),
        (lambda t: (t / "images").rename(t / "pictures"), "images/training"),
        (lambda t: (t / "images/training/a.jpg").write_bytes(b"text"), "images/training/a.jpg"),
        (lambda t: annotate(t, np.full([6, 8], 151)), "annotations/training/a.png"),
        (lambda t: annotate(t, np.zeros([5, 8])), "annotations/training/a.png"),
        (lambda t: annotate(t, np.zeros([6, 8, 3])), "annotations/training/a.png"),
    ],
    ids=["no annotation", "empty", "no folder", "unreadable", "out of range", "other size", "RGB"],
)
def test_invalid_layouts(tree, corrupt, path):
    corrupt(tree)
    with pytest.raises(InputError) as caught:
        ADE20K([], tree, mode="train")[0]
    assert str(tree / path) in str(caught.value)


def test_split_and_root_are_checked(tree):
    with pytest.raises(InputError, match="images/validation"):
        ADE20K([], tree, mode="val")
    with pytest.raises(InputError, match="dataset_root"):
        ADE20K([])
    with pytest.raises(InputError, match="'test'"):
        ADE20K([], tree, mode="test")


@needs_shared
def test_real_images():
    dataset = ADE20K([], ADE20K_SAMPLE, mode="val")
    names = {dataset.CLASS_NAMES[i] for s in dataset for i in np.unique(s["label"]) if i != 255}
    assert len(dataset) == 3
    assert {"sky", "building", "road", "tree"} <= names
    assert dataset.CLASS_NAMES[0] == "wall" and dataset.CLASS_NAMES[149] == "flag"
    assert dataset.PALETTE[2].tolist() == [6, 230, 230]
