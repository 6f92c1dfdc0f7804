"""Dataset: color and grayscale images, with and without labels, in each mode."""

import random

import cv2
import numpy as np
import pytest
from paddleseg import datasets
from paddleseg import transforms as paddleseg
from paddleseg.transforms import Resize

from paddleseg_segformer import Dataset, InputError, Normalize, Padding, ResizeToFit

MODES = ("train", "val", "test")
LABEL = np.arange(40, dtype="uint8").reshape(5, 8) % 3


@pytest.fixture
def root(tmp_path):
    """An 8x5 grayscale image with its label map, listed once, twice and three times by mode."""
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
def test_samples_are_float32(channels, transforms, root):
    sample = dataset(root, transforms=transforms, img_channels=channels)[0]
    assert sample["img"].shape == (channels, 5, 8) and sample["img"].dtype == np.float32
    for channel in sample["img"]:
        np.testing.assert_array_equal(channel, np.arange(40).reshape(5, 8))
    np.testing.assert_array_equal(sample["label"], LABEL)


def test_each_mode_reads_its_list(root):
    assert [len(dataset(root, mode)) for mode in (*MODES, "TRAIN")] == [1, 2, 3, 1]


def test_only_validation_keeps_the_label_size(root):
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
        ("label.png", np.zeros([5, 8, 3]), "label.png: must be a single-channel 8-bit image"),
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


@pytest.mark.parametrize("mode", ["train", "val"])
@pytest.mark.parametrize(
    "transforms",
    [
        [paddleseg.Resize((23, 17)), paddleseg.Normalize()],  # float32 interpolation
        [paddleseg.Resize((23, 17), interp="CUBIC"), Normalize()],
        [paddleseg.Padding((12, 9)), Normalize()],  # by 127.5
        [Padding((12, 9)), paddleseg.Normalize()],
        [paddleseg.RandomHorizontalFlip(1), paddleseg.RandomVerticalFlip(1), Normalize()],
        [paddleseg.RandomCenterCrop(), paddleseg.RandomDistort(), Normalize([0.4], [0.2])],
        [Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])],
    ],
)
def test_samples_are_bit_identical_to_paddlesegs(mode, transforms, root):
    cv2.imwrite(
        str(root / "image.png"), np.random.default_rng(0).integers(0, 256, [5, 8, 3], "uint8")
    )
    samples = []
    for kind in (Dataset, datasets.Dataset):
        lists = {f"{mode}_path": str(root / f"{mode}.txt")}
        random.seed(0)
        np.random.seed(0)
        samples.append(kind(mode, str(root), list(transforms), num_classes=3, **lists)[0])
    ours, theirs = samples
    assert ours["img"].dtype == np.float32 and ours["trans_info"] == theirs["trans_info"]
    np.testing.assert_array_equal(ours["img"], theirs["img"])
    np.testing.assert_array_equal(ours["label"], theirs["label"])


@pytest.mark.parametrize(
    "flips, flipped",
    [
        ([paddleseg.RandomVerticalFlip(1)], np.s_[::-1]),
        ([paddleseg.RandomHorizontalFlip(1)], np.s_[:, ::-1]),
        ([paddleseg.RandomHorizontalFlip(1), paddleseg.RandomVerticalFlip(1)], np.s_[::-1, ::-1]),
    ],
    ids=["vertical", "horizontal", "both"],
)
def test_flips_are_of_image_and_label(flips, flipped, root):
    sample = dataset(root, transforms=flips)[0]
    np.testing.assert_array_equal(sample["img"][0], np.arange(40).reshape(5, 8)[flipped])
    np.testing.assert_array_equal(sample["label"], LABEL[flipped])


@pytest.mark.parametrize("mode", MODES)
def test_label_map(mode, root):
    """Of what is in the file; a value that is mapped to is not mapped again."""
    pairs = dataset(root, mode, ignore_index=255, label_map={0: 2, 2: 1, 1: 255})
    expected = np.array([2, 255, 1], "uint8")[LABEL]
    for label in (np.squeeze(pairs[0]["label"]), pairs._read(0)[1]):
        assert label.dtype == np.uint8
        np.testing.assert_array_equal(label, expected)
    (root / "test.txt").write_text("image.png\n")
    assert "label" not in dataset(root, "test", label_map={0: 1})[0]


def test_label_map_of_a_manifest(root):
    """JSON has no numbers as keys."""
    pairs = [dataset(root, label_map=label_map) for label_map in ({1: 0, 2: 1}, {"1": 0, "2": 1})]
    np.testing.assert_array_equal(*[samples[0]["label"] for samples in pairs])


@pytest.mark.parametrize(
    "label_map, match",
    [
        ({255: 3}, r"maps 255 to 3, which is neither a class \(0 to 2\) nor ignored \(255\)"),
        ({256: 1}, "has 256: 1; both must be whole numbers from 0 to 255"),
        ({-1: 1}, "has -1: 1; both must be"),
        ({1: -1}, "has 1: -1; both must be"),
        ({1: 0.5}, "has 1: 0.5; both must be"),
        ({"white": 1}, "has 'white': 1; both must be"),
        ({"\N{SUPERSCRIPT TWO}": 0}, "has '.': 0; both must be"),
        ({1: True}, "has 1: True; both must be"),
        ({}, r"is \{\}; it must map values, such as \{255: 1\}"),
        ([255, 1], r"is \[255, 1\]; it must map"),
    ],
)
def test_invalid_label_maps(label_map, match, root):
    with pytest.raises(InputError, match=f"^Dataset: label_map {match}"):
        dataset(root, label_map=label_map)


def edge(root, label, mode="train", transforms=()):
    cv2.imwrite(str(root / "image.png"), np.zeros([*label.shape, 3], "uint8"))
    cv2.imwrite(str(root / "label.png"), label)
    return dataset(root, mode, transforms, edge=True)[0].get("edge")


def test_edges_are_two_pixels_on_each_side_of_a_border(root):
    """Of a label map of two halves; the sides of the image are borders, too."""
    label = np.zeros([11, 14], "uint8")
    label[:, 8:] = 1
    expected = np.ones([1, 11, 14])
    expected[:, 2:9, 2:6] = expected[:, 2:9, 10:12] = 0
    np.testing.assert_array_equal(edge(root, label), expected)
    flips = [paddleseg.RandomHorizontalFlip(1)]
    np.testing.assert_array_equal(edge(root, label, transforms=flips), expected[:, :, ::-1])
    assert edge(root, label, "val") is None and "edge" not in dataset(root)[0]


def test_edges_are_within_two_pixels_of_another_label(root):
    """Around each pixel, ignored ones included; outside the image, all pixels are ignored."""
    label = np.random.default_rng(0).choice([0, 1, 2, 255], [6, 7]).repeat(6, 0).repeat(7, 1)
    padded, expected = np.pad(label, 2, constant_values=255), np.zeros(label.shape, bool)
    for dy, dx in np.ndindex(5, 5):
        if (dy - 2) ** 2 + (dx - 2) ** 2 <= 4:
            expected |= padded[dy : dy + len(label), dx : dx + label.shape[1]] != label
    np.testing.assert_array_equal(edge(root, label.astype("uint8"))[0], expected)


@pytest.mark.parametrize("bands", [0, 2.0, True, 513])
def test_invalid_numbers_of_bands(bands, root):
    """OpenCV's functions take an array of more than 512 bands for something else."""
    with pytest.raises(InputError, match=r"^Dataset: img_channels is .* from 1 to 512\.$"):
        dataset(root, img_channels=bands)
