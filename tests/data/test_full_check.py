"""The check of a whole data set finds each kind of damage."""

import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer import InputError
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.data.validate import full_check


@pytest.fixture
def scenes(tmp_path):
    write_scenes(tmp_path, train=6, val=2, size=(96, 96))
    return tmp_path


def check(request, root, caplog):
    config = load_config(
        request.config.rootpath / "configs/quickstart.yaml",
        [f"{split}_dataset.dataset_root={root}" for split in ("train", "val")],
    )
    logging.getLogger("paddleseg_segformer").propagate = True
    with caplog.at_level(logging.INFO, logger="paddleseg_segformer"):
        full_check(config)
    return caplog.text


def test_frequencies_are_those_of_the_files(request, scenes, caplog):
    log = check(request, scenes, caplog)
    labels = [np.asarray(Image.open(p)) for p in (scenes / "annotations/training").iterdir()]
    share = np.mean([label == 3 for label in labels])  # the sky's annotation value
    row = next(line for line in log.splitlines() if line.startswith("sky "))
    assert row.split()[1:] == [f"{share:.3%}", "6"]
    unnamed = 150 - len(set(np.unique(labels)) - {0}) - 20  # of the classes that no image has
    assert f" and {unnamed} more; values from 0 to 149 are classes, 255 is ignored" in log
    assert "train_dataset: 6 images; the whole ADE20K has 20210" in log


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


def test_a_missing_pair_does_not_hide_the_other_set(request, scenes, caplog):
    (scenes / "annotations/training/scene_train_00000001.png").unlink()
    (scenes / "images/validation/scene_val_00000002.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="2 problems"):
        check(request, scenes, caplog)
    assert "scene_train_00000001.jpg: has no annotation" in caplog.text
    assert "scene_val_00000002.jpg: cannot be read" in caplog.text
