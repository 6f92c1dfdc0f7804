"""Dataset: pairs of either number of channels, with labels and without, and what modes give."""

import cv2
import numpy as np
import pytest
from paddleseg.transforms import Resize

from paddleseg_segformer import Dataset, InputError, ResizeToFit

MODES = ("train", "val", "test")
LABEL = np.arange(40, dtype="uint8").reshape(5, 8) % 3


@pytest.fixture
def root(tmp_path):
    """A pair of 8x5, once, twice and thrice in the modes' lists; the image is gray."""
    cv2.imwrite(str(tmp_path / "image.png"), np.arange(40, dtype="uint8").reshape(5, 8))
    cv2.imwrite(str(tmp_path / "label.png"), LABEL)
    for number, mode in enumerate(MODES, 1):
        (tmp_path / f"{mode}.txt").write_text(number * "image.png label.png\n")
    return tmp_path


def dataset(root, mode="train", transforms=(), **options):
    lists = {f"{name}_path": root / f"{name}.txt" for name in MODES}
    return Dataset(mode, root, transforms, num_classes=3, **lists, **options)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("transforms", [[], [ResizeToFit((8, 5))]], ids=["none", "8-bit"])
def test_samples_are_of_floats(channels, transforms, root):
    sample = dataset(root, transforms=transforms, img_channels=channels)[0]
    assert sample["img"].shape == (channels, 5, 8) and sample["img"].dtype == np.float32
    for channel in sample["img"]:
        np.testing.assert_array_equal(channel, np.arange(40).reshape(5, 8))
    np.testing.assert_array_equal(sample["label"], LABEL)


def test_each_mode_has_its_list(root):
    assert [len(dataset(root, mode)) for mode in (*MODES, "TRAIN")] == [1, 2, 3, 1]


def test_only_validation_keeps_the_label_at_its_size(root):
    shapes = [dataset(root, mode, [Resize((16, 10))])[0]["label"].shape for mode in MODES]
    assert shapes == [(10, 16), (1, 5, 8), (10, 16)]


@pytest.mark.parametrize("channels", [1, 3])
def test_images_without_labels(channels, root):
    (root / "test.txt").write_text("image.png\n")
    sample = dataset(root, "test", [Resize((16, 10))], img_channels=channels, edge=True)[0]
    assert sample["img"].shape == (channels, 10, 16)
    assert "label" not in sample and "edge" not in sample


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "name, content, match",
    [
        ("label.png", np.zeros([4, 8]), "label.png: is 8x4, but its image .*image.png is 8x5"),
        ("label.png", np.zeros([5, 8, 3]), "label.png: must be an 8-bit image of one channel"),
        ("image.png", None, "image.png: cannot be read as an image"),
    ],
    ids=["other size", "colors", "damaged"],
)
def test_bad_pairs(channels, name, content, match, root):
    if content is None:
        (root / name).write_bytes(b"text")
    else:
        cv2.imwrite(str(root / name), content)
    with pytest.raises(InputError, match=match):
        dataset(root, img_channels=channels)[0]
