"""Checks of data sets before training, and of whole data sets."""

import logging
import re
import shutil
from collections import namedtuple

import cv2
import numpy as np
import paddle
import pytest
import yaml
from paddleseg import datasets
from PIL import Image
from training_runs import write_checkpoint

from paddleseg_segformer import Dataset, ResizeToFit
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.dataset_report import check_dataset_splits
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.data.validate import check_before_training
from paddleseg_segformer.engine import run_dir, train
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.errors import InputError

NORMALIZE = "{type: Normalize}"
PAIR = "images/{}.png annotations/{}.png"


@pytest.fixture
def data(tmp_path):
    """Eight pairs of 64x48 in PaddleSeg's file lists: six for training, two for validation."""
    for folder in ("images", "annotations"):
        (tmp_path / folder).mkdir()
    for i in range(8):
        cv2.imwrite(str(tmp_path / f"images/{i}.png"), np.full([48, 64, 3], i, "uint8"))
        cv2.imwrite(str(tmp_path / f"annotations/{i}.png"), np.full([48, 64], i % 3, "uint8"))
    write_lists(tmp_path)
    return tmp_path


def write_lists(root, train=range(6), val=range(6, 8)):
    for name, numbers in (("train", train), ("val", val)):
        lines = [PAIR.format(i, i) for i in numbers]
        (root / f"{name}.txt").write_text("\n".join(lines))


def configuration(root, *options, transforms=""):
    sets = [
        f"{mode}_dataset: {{type: Dataset, dataset_root: {root}, {mode}_path: {root}/{mode}.txt, "
        f"num_classes: 3, mode: {mode}, transforms: [{extra}{NORMALIZE}]}}"
        for mode, extra in (("train", transforms), ("val", ""))
    ]
    path = root / "config.yaml"
    path.write_text(
        "\n".join(sets)
        + """
batch_size: 2
iters: 2
optimizer: {type: AdamW, weight_decay: 0.01}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.001}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
model:
  type: SegFormer
  num_classes: 3
  embedding_dim: 16
  backbone: {type: MixVisionTransformer, embed_dims: [4, 8, 20, 32], depths: [1, 1, 1, 1]}
"""
    )
    return load_config(path, options)


def refused(config, match, save_dir=None, **options):
    save_dir = save_dir or config.dic["train_dataset"]["dataset_root"] + "/out"
    with pytest.raises(InputError, match=match):
        train(config, save_dir=save_dir, do_eval=True, **options)


@pytest.mark.integration
def test_valid_data_trains(data):
    assert train(configuration(data), save_dir=str(data / "out"), do_eval=True) >= 0


def dataset(root, mode="train", kind=Dataset, transforms=(), classes=3):
    lists = {f"{mode}_path": str(root / f"{mode}.txt")}
    return kind(mode, str(root), list(transforms), num_classes=classes, **lists)


@pytest.mark.parametrize("mode", ["trainaug", "trainval"])
def test_training_modes_of_pascal_voc(mode, data):
    pairs = dataset(data)
    pairs.mode = mode
    check_before_training(pairs)


def test_wrong_modes_are_errors(data):
    (data / "test.txt").write_text(PAIR.format(0, 0))
    for mode in ("val", "test"):
        with pytest.raises(InputError, match=rf"train_dataset\.mode: must be train, not {mode}\."):
            check_before_training(dataset(data, mode))
    for mode in ("train", "test"):
        with pytest.raises(InputError, match=rf"val_dataset\.mode: must be val, not {mode}\."):
            check_before_training(dataset(data), dataset(data, mode))


def test_uint8_images(data):
    """PaddleSeg's data sets may return them; this package's convert to float32."""
    fit = [ResizeToFit((64, 48))]
    check_before_training(dataset(data, transforms=fit))
    with pytest.raises(InputError, match=r"train_dataset\.transforms: .* uint8 .* Normalize"):
        check_before_training(dataset(data, kind=datasets.Dataset, transforms=fit))


def test_no_images(data):
    write_lists(data, val=[])
    refused(configuration(data), "val_dataset: has no images")


@pytest.mark.parametrize("number, section", [(3, "train"), (7, "val")])
def test_missing_files(number, section, data):
    (data / f"annotations/{number}.png").unlink()
    refused(configuration(data), rf"{section}_dataset: .*annotations/{number}\.png does not exist")


@pytest.mark.parametrize("number", [5, 6])
def test_a_label_out_of_range(number, data):
    """Of the last training image and the first validation image."""
    cv2.imwrite(str(data / f"annotations/{number}.png"), np.full([48, 64], 3, "uint8"))
    refused(configuration(data), rf"annotations/{number}\.png: label 3 is neither a class \(0 to 2")


def test_samples_are_spread_over_the_whole_data_set(data):
    """The last of 100 is among the few that are checked."""
    write_lists(data, train=[0] * 99 + [1])
    check_before_training(dataset(data))
    cv2.imwrite(str(data / "annotations/1.png"), np.full([48, 64], 3, "uint8"))
    with pytest.raises(InputError, match=r"annotations/1\.png: label 3 is neither"):
        check_before_training(dataset(data))


def test_other_numbers_of_classes(data):
    with pytest.raises(InputError, match="val_dataset: has 4 classes, train_dataset 3;"):
        check_before_training(dataset(data), dataset(data, "val", classes=4))


def test_a_tolerant_check_warns_of_missing_and_unreadable_files(data, caplog):
    for name in ("images/1.png", "images/3.png", "annotations/3.png"):
        (data / name).unlink()
    (data / "images/4.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"images/1\.png does not exist as a file, nor do 2 other"):
        check_before_training(dataset(data))
    check_before_training(dataset(data), dataset(data, "val"), tolerant=True)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 4 and "nor do 2 other files" in texts[0]
    for text, name in zip(texts[1:], ("images/1.png", "images/3.png", "images/4.png")):
        assert text.startswith(f"{data}/{name}: ")
    (data / "images/7.png").unlink()
    with pytest.raises(InputError, match=r"val_dataset: .*images/7\.png does not exist as a file;"):
        check_before_training(dataset(data), dataset(data, "val"), tolerant=True)


def test_unreadable_validation_image(data):
    (data / "images/7.png").write_bytes(b"")
    refused(configuration(data), r"images/7\.png")


@pytest.mark.integration
def test_images_of_several_sizes_cannot_be_batched(data):
    cv2.imwrite(str(data / "images/5.png"), np.zeros([48, 80, 3], "uint8"))
    cv2.imwrite(str(data / "annotations/5.png"), np.zeros([48, 80], "uint8"))
    refused(configuration(data), r"different sizes \(64x48 and 80x48\)")
    crop = "{type: RandomPaddingCrop, crop_size: [64, 64]}, "
    train(configuration(data, transforms=crop), save_dir=str(data / "out"))


def test_images_too_small_for_the_model(data):
    crop = "{type: RandomPaddingCrop, crop_size: [64, 16]}, "
    refused(configuration(data, transforms=crop), "images of 64x16; .* at least 32")


def test_a_stride_beyond_the_crop(data):
    windows = ["test_config={is_slide: true, crop_size: [32, 32], stride: [48, 32]}"]
    refused(configuration(data, *windows), "--stride .* must be positive and at most")


def test_a_folder_that_cannot_be_written(data):
    (data / "file").touch()
    refused(configuration(data), "--save_dir .*file/out: cannot be written", str(data / "file/out"))


def test_too_little_disk_space_for_the_checkpoints(tmp_path, monkeypatch):
    """A million weights are 4 MB, a checkpoint with two moments of each 12 MB."""
    model = paddle.nn.Linear(1000, 1000, bias_attr=False)
    free = namedtuple("Usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free(70e6))
    options = {"save_dir": str(tmp_path), "save_interval": 1}
    with pytest.raises(InputError, match=r"70 MB .* 6 checkpoints of 12 MB .* 76 MB"):
        run_dir.check_disk_space(TrainOptions(**options), 50, model)  # 6 * 12 + 4
    run_dir.check_disk_space(TrainOptions(keep_checkpoint_max=0, **options), 5, model)
    write_checkpoint(tmp_path, 1)
    run_dir.check_disk_space(TrainOptions(resume=True, **options), 50, model)


def test_checkpoints_of_another_run_are_not_counted_as_saved(data, monkeypatch):
    """The run needs space for two, and the folder of another run is neither."""
    (data / "out/iter_900").mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(75e6))
    config = configuration(data, "model.backbone={type: MixVisionTransformer_B0}")
    refused(config, "2 checkpoints of 39.9 MB .* need 93.2 MB", save_interval=1)


def test_an_unknown_key_of_a_parameter_group(data):
    groups = ["optimizer.custom_cfg=[{name: norm, lr_multi: 2.0}]"]
    refused(configuration(data, *groups), "custom_cfg: lr_multi is no key")


@pytest.fixture
def scenes(tmp_path):
    write_scenes(tmp_path, train=6, val=2, size=(96, 96))
    return tmp_path


def check(request, root, caplog):
    config = load_config(
        request.config.rootpath / "configs/quickstart.yaml",
        [f"{split}_dataset.dataset_root={root}" for split in ("train", "val")],
    )
    with caplog.at_level(logging.INFO, logger="paddleseg_segformer"):
        check_dataset_splits(config)
    return caplog.text


def test_class_frequencies(request, scenes, caplog):
    log = check(request, scenes, caplog)
    labels = [np.asarray(Image.open(p)) for p in (scenes / "annotations/training").iterdir()]
    share = np.mean([label == 3 for label in labels])  # the sky's annotation value
    rows = [line.split()[1:] for line in log.splitlines() if line.startswith(("sky ", "(ignored)"))]
    unlabeled = np.mean([label == 0 for label in labels])
    assert rows[:2] == [[f"{share:.3%}", "6"], [f"{unlabeled:.3%}"]]
    unnamed = 150 - len(set(np.unique(labels)) - {0}) - 20  # of the classes without pixels
    assert f" and {unnamed} more; values from 0 to 149 are classes, 255 is ignored" in log
    assert "train_dataset: 6 images; the whole ADE20K has 20210\n" in log
    assert "val_dataset: 2 images; the whole ADE20K has 2000\n" in log


def test_class_weights_and_statistics_of_the_training_images(request, scenes, caplog):
    """From the files; ADE20K's 0 is unlabeled."""
    log = check(request, scenes, caplog)
    inverse, median = (yaml.safe_load(x)["weight"] for x in re.findall("^weight: .*", log, re.M))
    labels = [np.asarray(Image.open(p)) for p in (scenes / "annotations/training").iterdir()]
    pixels = np.array([np.bincount(label.ravel(), minlength=151)[1:] for label in labels])
    occurs = pixels.any(axis=0)
    weights = 1 / pixels.sum(axis=0)[occurs]
    np.testing.assert_allclose(np.array(inverse)[occurs], weights / weights.mean(), rtol=1e-3)
    labeled_with = ((pixels > 0) * pixels.sum(axis=1, keepdims=True)).sum(axis=0)
    share = (pixels.sum(axis=0) / np.maximum(labeled_with, 1))[occurs]
    np.testing.assert_allclose(np.array(median)[occurs], np.median(share) / share, rtol=1e-3)
    assert {*np.array(inverse)[~occurs], *np.array(median)[~occurs]} == {1}
    (transform, _) = (yaml.safe_load(x)[0] for x in re.findall("^- .type: Normalize.*", log, re.M))
    images = [cv2.imread(str(path)) for path in (scenes / "images/training").iterdir()]
    values = np.concatenate(images).reshape(-1, 3)[:, ::-1] / 255
    np.testing.assert_allclose(transform["mean"], values.mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(transform["std"], values.std(axis=0), rtol=1e-3)


def test_many_problems_are_counted(data, caplog):
    """25 of the training set, of which 20 are shown."""
    write_lists(data, train=[*range(9, 34), 9])  # the last is the first one again
    with pytest.raises(InputError, match=r"^25 problems in the data; 5 are not shown; "):
        check_dataset_splits(configuration(data), num_workers=2)
    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    missing = "does not exist, or is not a file."
    assert errors == [f"{data}/images/{i}.png: {missing}" for i in range(9, 29)]


def test_every_problem_is_reported(request, scenes, caplog):
    images, labels = scenes / "images/training", scenes / "annotations/training"
    name = "scene_train_{:08d}".format
    (images / f"{name(1)}.jpg").write_bytes(b"")
    (labels / f"{name(2)}.png").write_bytes((labels / f"{name(2)}.png").read_bytes()[:-200])
    cv2.imwrite(str(labels / f"{name(3)}.png"), np.full([96, 96], 151, "uint8"))
    cv2.imwrite(str(labels / f"{name(4)}.png"), np.zeros([96, 95], "uint8"))
    cv2.imwrite(str(labels / f"{name(5)}.png"), np.zeros([96, 96, 3], "uint8"))
    with pytest.raises(InputError, match="5 problems"):
        check(request, scenes, caplog)
    for number in range(1, 6):
        folder, ending = (images, "jpg") if number == 1 else (labels, "png")
        assert f"{folder}/{name(number)}.{ending}: " in caplog.text
    assert "label 150 is neither" in caplog.text and name(6) not in caplog.text


def test_a_missing_annotation_does_not_hide_problems_of_the_other_set(request, scenes, caplog):
    (scenes / "annotations/training/scene_train_00000001.png").unlink()
    (scenes / "images/validation/scene_val_00000002.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="2 problems"):
        check(request, scenes, caplog)
    assert "scene_train_00000001.jpg: has no annotation" in caplog.text
    assert "scene_val_00000002.jpg: cannot be read" in caplog.text
