"""ADE20K: reading its layout, and an error for each invalid one."""

import cv2
import numpy as np
import pytest
from paddleseg.transforms import Resize
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
    "corrupt, path, message",
    [
        (
            lambda t: [f.unlink() for f in (t / "annotations/training").iterdir()],
            "images/training/a.jpg",
            "has no annotation in {}/annotations/training (nor have 1 other images); see docs/ade2",
        ),
        (
            lambda t: (t / "annotations/training/b.png").unlink(),
            "images/training/b.jpg",
            "has no annotation in {}/annotations/training (nor have 0 other images); see docs/ade2",
        ),
        (
            lambda t: [f.unlink() for f in (t / "images/training").iterdir()],
            "images/training",
            "contains no .jpg image; see docs/ade20k.md for the download.",
        ),
        (
            lambda t: (t / "images").rename(t / "pictures"),
            "images/training",
            "no such folder; see docs/ade20k.md for the download.",
        ),
        (
            lambda t: (t / "annotations").rename(t / "labels"),
            "annotations/training",
            "no such folder; see docs/ade20k.md for the download.",
        ),
        (
            lambda t: (t / "images/training/a.jpg").write_bytes(b"text"),
            "images/training/a.jpg",
            "cannot be read as an image (cannot identify image file).",
        ),
        (
            lambda t: annotate(t, np.full([6, 8], 151)),
            "annotations/training/a.png",
            "has the value 151; ADE20K's values are 0 (unlabeled) to 150.",
        ),
        (
            lambda t: annotate(t, np.zeros([5, 8])),
            "annotations/training/a.png",
            "is 8x5, but its image {}/images/training/a.jpg is 8x6.",
        ),
        (
            lambda t: annotate(t, np.zeros([6, 8, 3])),
            "annotations/training/a.png",
            "must be a single-channel 8-bit image; convert color masks with ",
        ),
    ],
    ids=[
        "no annotations",
        "no annotation",
        "no images",
        "no folder of images",
        "no folder of annotations",
        "unreadable",
        "out of range",
        "other size",
        "RGB",
    ],
)
def test_invalid_layouts(tree, corrupt, path, message):
    corrupt(tree)
    with pytest.raises(InputError) as caught:
        ADE20K([], tree, mode="train")[0]
    assert str(caught.value).startswith(f"{tree / path}: {message.format(tree)}")


def test_split_and_root_are_checked(tree):
    with pytest.raises(InputError, match="images/validation: no such folder"):
        ADE20K([], tree, mode="val")
    with pytest.raises(InputError, match=r"^ADE20K: dataset_root is not set; see docs/ade20k\.md"):
        ADE20K([])
    with pytest.raises(InputError, match=r"^ADE20K: mode is 'test'; it must be one of"):
        ADE20K([], tree, mode="test")


def test_validation_split(tree):
    """Its labels keep their size, and are not transformed with the image."""
    for kind in ("images", "annotations"):
        (tree / kind / "training").rename(tree / kind / "validation")
    sample = ADE20K([Resize([4, 3])], tree, mode="val")[1]
    assert sample["img"].shape == (3, 3, 4) and sample["label"].shape == (1, 6, 8)
    assert set(sample["label"].flat) == {0, 149, 255}


def test_edges_are_between_classes(tree):
    edge = ADE20K([], tree, mode="train", edge=True)[0]["edge"]
    assert edge.shape[-2:] == (6, 8) and set(np.unique(edge)) == {0, 1}
    assert np.all(edge[..., 1:3, :] == 1)


def test_classes():
    """A few of the 150 in the data set's own order, with the colors of its toolkit."""
    assert len(ADE20K.CLASS_NAMES) == 150 and ADE20K.PALETTE.shape == (150, 3)
    for index, name, color in (
        (0, "wall", [120, 120, 120]),
        (2, "sky", [6, 230, 230]),
        (149, "flag", [92, 0, 255]),
    ):
        assert ADE20K.CLASS_NAMES[index] == name
        assert ADE20K.PALETTE[index].tolist() == color


@needs_shared
def test_real_images():
    dataset = ADE20K([], ADE20K_SAMPLE, mode="val")
    names = {dataset.CLASS_NAMES[i] for s in dataset for i in np.unique(s["label"]) if i != 255}
    assert len(dataset) == 3
    assert {"sky", "building", "road", "tree"} <= names
