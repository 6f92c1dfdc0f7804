"""Statistics of images, class weights, and transforms that spoil images."""

import logging
import re

import cv2
import numpy as np
import pytest
import yaml
from paddleseg.transforms import RandomPaddingCrop
from PIL import Image

from paddleseg_segformer import Dataset, InputError, Normalize
from paddleseg_segformer.data.dataset_report import class_weights
from paddleseg_segformer.data.image_check import Statistics, summarize, yaml_list
from paddleseg_segformer.data.validate import check_before_training

RNG = np.random.default_rng(0)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def normal(mean, std, bands=3, dtype="uint16", size=(12, 16)):
    values = RNG.normal(mean, std, [*size, bands])
    if np.dtype(dtype).kind in "iu":
        values = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


def write(root, images, ending="png"):
    """A data set's files; returns the paths of the images."""
    paths = [root / f"{i}.{ending}" for i in range(len(images))]
    for path, image in zip(paths, images):
        if ending == "npy":
            np.save(path, image)
        else:  # BGR
            order = [2, 1, 0, 3][: image.shape[2]] if image.ndim == 3 else ...
            assert cv2.imwrite(str(path), image[..., order] if image.ndim == 3 else image)
        Image.fromarray(np.indices(image.shape[:2])[1].astype("uint8") % 2).save(
            root / f"label{path.stem}.png"
        )
    lines = "".join(f"{path.name} label{path.stem}.png\n" for path in paths)
    for mode in ("train", "val"):
        (root / f"{mode}.txt").write_text(lines)
    return paths


def dataset(root, normalize=IMAGENET, bands=3, mode="train"):
    transforms = [] if normalize is None else [Normalize(*normalize)]
    lists = {f"{mode}_path": root / f"{mode}.txt"}
    return Dataset(mode, root, transforms, num_classes=2, img_channels=bands, **lists)


class Crop:
    """The lower right quarter."""

    def __call__(self, sample):
        for key in ("img", "label"):
            height, width = sample[key].shape[:2]
            sample[key] = sample[key][height // 2 :, width // 2 :]
        return sample


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("bands", [1, 3, 7])
def test_statistics_are_those_of_all_pixels(dtype, bands):
    """Images of different sizes and of very different values; one constant band."""
    images = [
        normal(*about, bands, dtype, size)
        for about, size in [((9, 5), (3, 7)), ((200, 40), (11, 5)), ((90, 1), (1, 1))]
    ]
    for image in images:
        image[:, :, -1] = 7
    parts = [
        Statistics.of(cv2.split(np.squeeze(image, 2) if bands == 1 else image)) for image in images
    ]
    actual = parts[0].merge(parts[1]).merge(parts[2])
    values = np.concatenate([image.reshape(-1, bands) for image in images]).astype("float64")
    assert actual.pixels == len(values)
    np.testing.assert_array_equal(actual.minimum, values.min(axis=0))
    np.testing.assert_array_equal(actual.maximum, values.max(axis=0))
    np.testing.assert_allclose(actual.mean, values.mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(actual.std, values.std(axis=0), rtol=1e-12, atol=1e-13)


FILES = {
    "8-bit": ("uint8", "png", 255, "8-bit, maximum 255, 3 bands"),
    "16-bit": ("uint16", "png", 65535, "16-bit, maximum {}, 3 bands"),
    "signed": ("int16", "npy", 32767, "signed 16-bit, maximum {}, 3 bands"),
    "float": ("float32", "npy", 1, "float32, maximum {}, 3 bands"),
    "integers": ("int32", "npy", 1, "int32, maximum {}, 3 bands"),
}


@pytest.mark.parametrize("dtype, ending, unit, about", FILES.values(), ids=FILES)
def test_what_is_said_of_files(dtype, ending, unit, about, tmp_path):
    """The table is in the files' unit, Normalize in fractions of the type's range."""
    images = [normal(120, 60, dtype=dtype), normal(900, 250, dtype=dtype)]
    write(tmp_path, images, ending)
    summary = summarize(dataset(tmp_path), range(2))
    values = np.concatenate([image.reshape(-1, 3) for image in images]).astype("float64")
    assert summary.describe() == about.format(f"{values.max():.6g}")
    header, *rows = summary.table().splitlines()
    assert header.split() == ["band", "minimum", "maximum", "mean", "std"]
    expected = [values.min(0), values.max(0), values.mean(0), values.std(0)]
    np.testing.assert_allclose(
        np.array([row.split()[1:] for row in rows], "float64"), np.transpose(expected), rtol=2e-5
    )
    line = yaml.safe_load(summary.normalize())
    np.testing.assert_allclose(line["mean"], values.mean(0) / unit, rtol=1e-3)
    np.testing.assert_allclose(line["std"], values.std(0) / unit, rtol=1e-3)
    assert summary.is_8bit() == (dtype == "uint8")


def test_files_of_several_types_are_in_fractions(tmp_path):
    write(tmp_path, [np.full([4, 4, 3], 51, "uint8")])
    path = write(tmp_path / "..", [np.full([4, 4, 3], 39321, "uint16")])[0]
    (tmp_path / "train.txt").write_text(f"0.png label0.png\n{path} label0.png\n")
    summary = summarize(dataset(tmp_path), range(2))
    assert summary.describe() == "8-bit and 16-bit, maximum 0.6, 3 bands"
    assert summary.table().splitlines()[1].split() == ["1", "0.2", "0.6", "0.4", "0.2"]


@pytest.mark.parametrize("mean, std", [(101325, 10), (-273.15, 0.02), (0.99, 0.1), (0, 3)])
def test_normalize_is_exact_enough_for_a_small_deviation(mean, std, tmp_path):
    """The mean, to a thousandth of the deviation; four digits otherwise."""
    image = np.where(np.arange(16) % 2, mean + std, mean - std).astype("float64")
    write(tmp_path, [np.tile(image[:, np.newaxis], (12, 1, 3))], "npy")
    line = yaml.safe_load(summarize(dataset(tmp_path), [0]).normalize())
    rounding = abs(mean) * 2e-7  # of float32
    np.testing.assert_allclose(line["mean"], mean, rtol=0, atol=std / 1000 + rounding)
    np.testing.assert_allclose(line["std"], std, rtol=2e-3)


def test_digits_of_printed_numbers():
    """Four, or those of the resolution, of which float32 has at most nine."""
    assert yaml_list([0, 2 / 3, 12345.678]) == "[0, 0.6667, 1.235e+04]"
    found = yaml_list([2 / 3, 12345.678, 1 / 3], np.array([1e-3, 0.01, 0]))
    assert found == "[0.6667, 12345.68, 0.333333333]"


SPOILED = {
    "12 bits": (normal(1500, 800), IMAGENET, "16-bit, maximum .*, 3 bands", "fractions of 65535"),
    "12 bits, default": (normal(1500, 800), None, "16-bit", "fractions of 65535"),
    "12 bits, numbers": (normal(1500, 800), ([1500], [800]), "16-bit", "fractions of 65535"),
    "large floats": (normal(300, 80, dtype="float32"), IMAGENET, "float32", "in the files' unit"),
}


@pytest.mark.parametrize("image, normalize, about, unit", SPOILED.values(), ids=SPOILED)
def test_transforms_that_spoil_images(image, normalize, about, unit, tmp_path):
    write(tmp_path, [np.abs(image)] * 3, "npy")
    normalize = normalize or ([0.5], [0.5])
    with pytest.raises(InputError) as caught:
        check_before_training(dataset(tmp_path, normalize))
    text = str(caught.value)
    assert re.match(rf"train_dataset\.transforms: leave .* images \({about}", text) and unit in text
    line = yaml.safe_load(
        re.search(r"use (\{type: Normalize, .*?\}) in train_dataset and", text)[1]
    )
    check_before_training(dataset(tmp_path, (line["mean"], line["std"])))


def test_padding_does_not_count(tmp_path):
    """Of 127.5, the middle of the 8-bit scale, and ignored."""
    write(tmp_path, [normal(1500, 800).clip(0, 4095)] * 3)
    data = dataset(tmp_path)
    data.transforms.transforms.insert(0, RandomPaddingCrop((64, 64)))
    with pytest.raises(InputError, match=r"train_dataset\.transforms: leave values that a"):
        check_before_training(data)


def test_what_does_not_spoil_images(tmp_path, caplog):
    """16 bits that use the range; dark photos, and photos that are not normalized."""
    for dtype in ("uint16", "uint8"):
        image = normal(0.4, 0.2, dtype="float32").clip(0, 1) * np.iinfo(dtype).max
        write(tmp_path, [image.astype(dtype)] * 2)
        check_before_training(dataset(tmp_path))
        assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    for image, normalize in ((normal(6, 2, dtype="uint8"), IMAGENET), (normal(90, 30), None)):
        write(tmp_path, [image.astype("uint8")] * 2)
        caplog.clear()
        check_before_training(dataset(tmp_path, normalize))
        (warning,) = [record.getMessage() for record in caplog.records]
        assert warning.startswith("train_dataset.transforms: leave values that a model cannot be t")


def test_images_that_are_all_truncated(tmp_path, caplog):
    """They are read as in training."""
    (path,) = write(tmp_path, [np.indices([64, 64, 3])[1].astype("uint8") // 8])
    data = cv2.imencode(".jpg", cv2.imread(str(path)))[1].tobytes()
    path.write_bytes(data[:-2])  # without the end-of-image marker
    check_before_training(dataset(tmp_path))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("train_dataset.transforms: leave values") and "8-bit, max" in warning


def test_a_band_that_is_constant_only_in_crops_is_a_warning(tmp_path, caplog):
    """Another spoiled band is an error still."""
    image = normal(30000, 9000, bands=4)
    image[:, :, 1] = 0
    image[0, 0, 1] = 40000
    write(tmp_path, [image])
    for mean, refused in ((0.46, False), (20, True)):
        data = dataset(tmp_path, ([0.46, 0.46, mean, 0.46], [0.14] * 4), bands=4)
        data.transforms.transforms.insert(0, Crop())
        caplog.clear()
        if refused:
            with pytest.raises(InputError, match="trained on: band 3 of the images"):
                check_before_training(data)
        else:
            check_before_training(data)
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "transforms: leave the same value everywhere in band 2 of the sampled" in warning


def test_found_types_alpha_and_constant_bands_are_logged(tmp_path, caplog):
    image = np.dstack([normal(30000, 9000), np.full([12, 16], 65535, "uint16")])
    paths = write(tmp_path, [image])
    with caplog.at_level(logging.INFO, logger="paddleseg_segformer"):
        check_before_training(dataset(tmp_path))
    found, alpha = [record.getMessage() for record in caplog.records]
    assert re.fullmatch(r"train_dataset: 16-bit, maximum \d+, 3 bands, in 1 sampled image", found)
    assert f"the alpha channel of images such as {paths[0]} is not used" in alpha
    image = image[:, :, [0, 1, 3]]
    write(tmp_path, [image], "npy")
    caplog.clear()
    check_before_training(dataset(tmp_path))
    assert yaml.safe_load(summarize(dataset(tmp_path), [0]).normalize())["std"][2] == 1
    constant = caplog.records[-1].getMessage()
    assert constant == "train_dataset: all images have the same value everywhere in band 3"


def test_class_weights():
    """Three images of 100 labeled pixels: class 0 in all of them, 1 in two, 2 in none, 3 in one."""
    counts = np.array([[90, 10, 0, 0], [60, 40, 0, 0], [50, 0, 0, 50]])
    inverse, balanced = class_weights(counts.sum(0), (counts > 0).sum(0) * 100)
    shares = np.array([200, 50, 50]) / 300
    np.testing.assert_allclose(inverse[[0, 1, 3]], 3 / shares / (1 / shares).sum())
    np.testing.assert_allclose(inverse[[0, 1, 3]].mean(), 1)
    frequency = np.array([200 / 300, 50 / 200, 50 / 100])
    np.testing.assert_allclose(balanced[[0, 1, 3]], 0.5 / frequency)  # the median is class 3's
    assert inverse[2] == balanced[2] == 1


@pytest.mark.parametrize("dtype, bands", [("float32", 1), ("float32", 2), ("uint8", 3)])
def test_pixels_without_data_are_a_warning(dtype, bands, tmp_path, caplog):
    """In files that Pillow and that rasterio reads; 0 is what predict reads."""
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    write(tmp_path, [normal(120, 60, dtype="uint8")])
    path, image = tmp_path / "a.tif", normal(120, 60, bands, dtype).clip(1, 200)
    (tmp_path / "train.txt").write_text("a.tif label0.png\n")
    options = {"height": 12, "width": 16, "count": bands, "dtype": dtype, "crs": "EPSG:32633"}
    options["transform"] = rasterio.transform.from_origin(5, 5, 1, 1)
    normalize = ([0.5], [0.3]) if dtype == "uint8" else ([120], [60])
    for nodata in (240, 0, None):
        image[:3] = nodata or 0
        with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **options) as file:
            file.write(image.transpose(2, 0, 1).astype(dtype))
        caplog.clear()
        check_before_training(dataset(tmp_path, normalize, bands))
        found = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert len(found) == (nodata == 240), found
        assert not found or f"such as {path} have pixels without data, whose value 240" in found[0]


def test_another_normalization_in_validation_is_a_warning(tmp_path, caplog):
    write(tmp_path, [normal(1500, 800, 4)])
    fits = ([0.023], [0.0122])
    check_before_training(dataset(tmp_path, fits, 4), dataset(tmp_path, fits, 4, "val"))
    same = dataset(tmp_path, ([0.023] * 4, [0.0122] * 4), 4, "val")
    check_before_training(dataset(tmp_path, fits, 4), same)
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    check_before_training(dataset(tmp_path, fits, 4), dataset(tmp_path, ([0.5], [0.5]), 4, "val"))
    (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert warning.startswith("val_dataset.transforms: normalize images with mean [0.5, 0.5, 0.5,")
    assert "train_dataset's with mean [0.023, 0.023, 0.023, 0.023], std [0.0122," in warning
