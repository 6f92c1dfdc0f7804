"""Labels and images that mean something else than the config: what is said, and its remedy."""

import logging
import re

import cv2
import numpy as np
import pytest
import yaml
from paddleseg import datasets

from paddleseg_segformer import Dataset, Normalize
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.dataset_report import check_dataset_splits
from paddleseg_segformer.data.prepare import convert_color_masks
from paddleseg_segformer.data.validate import check_before_training
from paddleseg_segformer.errors import InputError

CHECKS = ("train", "check_dataset")


class Data:
    """Four images with labels in a folder, and a config of them."""

    def __init__(self, root):
        self.root, self.transforms = root, [{"type": "Normalize"}]
        for folder in ("images", "masks"):
            (root / folder).mkdir()
        self.write_lists("masks")

    def write_lists(self, folder):
        lines = "".join(f"images/{i}.png {folder}/{i}.png\n" for i in range(4))
        for split in ("train", "val"):
            (self.root / f"{split}.txt").write_text(lines)

    def write(self, masks):
        """Write a mask of stripes for each list of values or of colors."""
        for i in range(4):
            mask = np.repeat(np.array(masks[i % len(masks)], "uint8"), 8, axis=0)[:, None]
            mask = np.repeat(mask, 40, axis=1)
            cv2.imwrite(str(self.root / f"masks/{i}.png"), mask)
            image = np.random.default_rng(i).integers(0, 256, [*mask.shape[:2], 3])
            cv2.imwrite(str(self.root / f"images/{i}.png"), image)

    def datasets(self, classes, kind=Dataset, **options):
        for mode in ("train", "val"):
            options[f"{mode}_path"] = str(self.root / f"{mode}.txt")
            transforms = [Normalize(*list(line.values())[1:]) for line in self.transforms]
            yield kind(mode, str(self.root), transforms, num_classes=classes, **options)

    def config(self, classes, **options):
        tree = {
            f"{split}_dataset": {
                "type": "Dataset",
                "dataset_root": str(self.root),
                f"{split}_path": str(self.root / f"{split}.txt"),
                "num_classes": classes,
                "mode": split,
                "transforms": self.transforms,
                **options,
            }
            for split in ("train", "val")
        }
        tree |= {
            "batch_size": 2,
            "iters": 1,
            "optimizer": {"type": "AdamW"},
            "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.001},
            "loss": {"types": [{"type": "CrossEntropyLoss"}], "coef": [1]},
            "model": {"type": "SegFormer", "backbone": {"type": "MixVisionTransformer_B0"}},
        }
        (self.root / "config.yaml").write_text(yaml.safe_dump(tree))
        return load_config(self.root / "config.yaml")

    def check(self, command, classes, **options):
        if command == "train":
            check_before_training(*self.datasets(classes, **options))
        else:
            check_dataset_splits(self.config(classes, **options), num_workers=1)

    def refused(self, command, caplog, classes, **options):
        """The sentence with which a command stops."""
        caplog.clear()
        with pytest.raises(InputError) as caught:
            self.check(command, classes, **options)
        if command == "train":
            return str(caught.value)
        return next(r.getMessage() for r in caplog.records if r.levelno == logging.ERROR)


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


BINARY = "train_dataset: the LABELS have the values 0 and 255, of which 255 is ignored, so that "
BINARY += "class 1 has no pixels; if 255 is class 1, set label_map: {255: 1} in train_dataset and "
BINARY += "val_dataset, and if it is to be ignored, label_map: {255: 255}."
NEITHER = "masks/0.png: label {} is neither a class (0 to {}) nor ignored (255); the LABELS have "
MAPS = {
    "0 and 255": (2, [[0, 255]], BINARY, {255: 1}),
    "0 and 1, counted from 1": (
        2,
        [[1, 2]],
        NEITHER.format(2, 1) + "the values 1 and 2: if they count from 1, set label_map: {1: 0, 2: "
        "1} in train_dataset and val_dataset.",
        {1: 0, 2: 1},
    ),
    "counted from 1": (
        4,
        [[1, 4], [3, 255]],  # no 2; with 255, as many values as classes
        NEITHER.format(4, 3) + "the values 1, 3, 4 and 255: if they count from 1, set label_map: {",
        {1: 0, 2: 1, 3: 2, 4: 3},
    ),
    "counted from 1, with 0": (
        3,
        [[0, 3], [1, 2]],
        NEITHER.format(3, 2) + "the values 0, 1, 2 and 3: if 0 is a class, set num_classes: 4; if "
        "it is unlabeled and the classes count from 1, set label_map: {0: 255, 1: 0, 2: 1, 3: 2} ",
        {0: 255, 1: 0, 2: 1, 3: 2},
    ),
    "gray levels": (
        3,
        [[0, 128], [255, 0]],
        NEITHER.format(128, 2) + "the values 0, 128 and 255: if these are the classes in this order"
        ", set label_map: {128: 1, 255: 2} in train_dataset and val_dataset.",
        {128: 1, 255: 2},
    ),
    "gray levels and ignored": (
        2,
        [[0, 128], [255, 0]],
        NEITHER.format(128, 1) + "the values 0, 128 and 255: if these are the classes in this order"
        ", set label_map: {128: 1} in train_dataset and val_dataset.",
        {128: 1},
    ),
    "all ignored": (
        2,
        [[255, 255]],
        "train_dataset: the LABELS have the value 255, so that all pixels are ignored; correct the "
        "labels, or set label_map: {255: 1} in train_dataset and val_dataset.",
        {255: 1},
    ),
}


@pytest.mark.parametrize("command", CHECKS)
@pytest.mark.parametrize("classes, masks, expected, label_map", MAPS.values(), ids=MAPS)
def test_values_that_a_label_map_corrects(
    classes, masks, expected, label_map, command, data, caplog
):
    """The sentence, and that the map in it, put into the config, is accepted."""
    data.write(masks)
    text = data.refused(command, caplog, classes)
    labels = "labels" if command == "check_dataset" else "4 sampled labels"
    assert expected.replace("LABELS", labels) in text
    pasted = yaml.safe_load(re.search(r"label_map: (\{.*?\})", text)[1])
    assert pasted == label_map
    data.check(command, classes, label_map=pasted)
    values = np.repeat(masks[0], 8)
    expected = [label_map.get(value, value) for value in values.tolist()]
    for pairs in data.datasets(classes, label_map=pasted):
        np.testing.assert_array_equal(np.squeeze(pairs[0]["label"])[:, 0], expected)


@pytest.mark.parametrize("command", CHECKS)
def test_ignored_pixels_that_are_meant(command, data, caplog):
    """Two classes, of which one is rare, and 255: what the sentence's other map says."""
    data.write([[0, 255]])
    data.check(command, 2, label_map={255: 255})
    assert "no class but 0" in caplog.text or "no image has 1;" in caplog.text
    data.write([[0, 255], [1, 0]])
    caplog.clear()
    data.check(command, 2)
    assert "WARNING" not in caplog.text


@pytest.mark.parametrize("command", CHECKS)
def test_validation_labels_are_checked_too(command, data, caplog):
    data.write([[0, 1], [0, 255]])
    for split, number in (("train", 0), ("val", 1)):
        (data.root / f"{split}.txt").write_text(f"images/{number}.png masks/{number}.png\n")
    text = data.refused(command, caplog, 2)
    assert text.startswith("val_dataset: the ") and "label_map: {255: 1}" in text


def test_a_tolerant_run_leaves_out_labels_that_are_out_of_range(data, caplog):
    """It replaces these samples, of which each is warned of; it does not replace ignored ones."""
    data.write([[0, 1], [0, 1], [0, 2], [0, 1]])
    train = next(data.datasets(2))
    with pytest.raises(InputError, match="if 0 is a class, set num_classes: 3"):
        check_before_training(train)
    check_before_training(train, tolerant=True)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert f"{data.root}/masks/2.png: label 2 is neither" in warning
    data.write([[0, 255], [0, 255], [0, 2], [0, 255]])
    with pytest.raises(InputError, match=r"label_map: \{255: 1\}"):
        check_before_training(train, tolerant=True)


@pytest.mark.parametrize("command", CHECKS)
@pytest.mark.parametrize(
    "masks, expected",
    [
        ([[0, 1], [9, 1]], "the values 0, 1 and 9: correct the labels or num_classes, or map each"),
        ([range(60)], "7, 8, 9, 10, 11 and 48 more: save the masks lossless (PNG) and without an"),
    ],
    ids=["any", "antialiased"],
)
def test_values_without_a_certain_meaning(masks, expected, command, data, caplog):
    data.write(masks)
    assert expected in data.refused(command, caplog, 5)


@pytest.mark.parametrize("command", CHECKS)
def test_a_value_that_the_label_map_lacks(command, data, caplog):
    data.write([[0, 128], [200, 0]])
    text = data.refused(command, caplog, 3, label_map={128: 1})
    assert "masks/1.png: label 200 is neither a class" in text and "label_map" not in text


@pytest.mark.parametrize("command", CHECKS)
def test_color_masks(command, data, caplog):
    """The command in the sentence, and the change of the file lists, make them label maps."""
    data.write([[[0, 0, 0], [0, 0, 200]]])  # BGR
    text = data.refused(command, caplog, 2)
    start = f"{data.root}/masks/0.png: must be a single-channel 8-bit image of class indices; write"
    assert text.startswith(start) and f"into {data.root}/labels.txt" in text
    command_line = f"segformer masks_from_colors {data.root} masks masks_indices"
    assert command_line in text and "replace masks/ by masks_indices/ in the file lists" in text
    (data.root / "labels.txt").write_text("ground 0 0 0\nobject 200 0 0\n")
    convert_color_masks(*command_line.split()[2:])
    data.write_lists("masks_indices")
    data.check(command, 2)


@pytest.mark.parametrize(
    "classes, masks, expected",
    [
        (2, [[0, 0]], "the value 0: no class but 0; correct the labels or num_classes, unless"),
        (4, [[0, 1]], "the values 0 and 1: no pixel of classes 2 (car) and 3 (cow); correct"),
        (
            4,
            [[0, 255]],
            "0 and 255: no class but 0 (sky); …255 is ignored, unless mapped to a class by",
        ),
        (4, [[1, 2]], "no pixel of …from 1, set label_map: {1: 0, 2: 1, 3: 2, 4: 3} in train_d"),
        (90, [[0, 1]], "the values 0 and 1: no pixel of classes 2, 3, 4, …, 13 and 76 more; "),
    ],
)
def test_missing_classes_are_a_warning(classes, masks, expected, data, caplog):
    (data.root / "labels.txt").write_text("sky\nroad\ncar\ncow\n" if classes == 4 else "")
    data.write(masks)
    data.check("train", classes)
    (warning,) = [r.getMessage() for r in caplog.records if "labels.txt" not in r.getMessage()]
    assert "train_dataset: the 4 sampled labels have the value" in warning
    assert all(part in warning for part in expected.split("…"))


def test_a_few_of_many_classes_are_no_warning(data, caplog):
    data.write([[0, 1], [2, 3]])
    data.check("train", 90)
    assert not caplog.records


def test_other_data_sets_get_no_label_map(data, caplog):
    """They may change the values when they read them."""
    data.write([[0, 255]])
    train = next(data.datasets(2, datasets.Dataset))
    check_before_training(train)
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.endswith(
        "no class but 0; correct the labels or num_classes, unless the others are rare"
    )


@pytest.mark.parametrize("command", CHECKS)
def test_each_of_several_lists_is_checked_on_its_own(command, data, caplog):
    """Together, masks of 0 and 1 and of 0 and 255 look like two classes and ignored pixels."""
    data.write([[0, 1], [0, 1], [0, 255], [0, 255]])
    lists = [data.root / f"{name}.txt" for name in "ab"]
    for path, numbers in zip(lists, ((0, 1), (2, 3))):
        path.write_text("".join(f"images/{i}.png masks/{i}.png\n" for i in numbers))
    data.datasets = lambda classes: [
        Dataset("train", data.root, [Normalize()], classes, train_path=lists)
    ]
    if command == "check_dataset":
        config = data.config(2)
        config.dic["train_dataset"]["train_path"] = list(map(str, lists))
        config.dic["val_dataset"]["val_path"] = str(lists[0])
        data.config = lambda classes: config
    expected = BINARY.replace(
        "LABELS", f"{'2 sampled ' * (command == 'train')}labels of {lists[1]}"
    )
    assert data.refused(command, caplog, 2) == (
        f"{expected[:-1]}; label_map holds for all lists: if the others' values differ, convert "
        "these labels."
    )


@pytest.mark.parametrize("command", CHECKS)
def test_transforms_that_spoil_images(command, data, caplog):
    """12 bits in 16: the sentence, and that the line in it, put into the config, is accepted."""
    data.write([[0, 1]])
    for i in range(4):
        image = np.random.default_rng(i).integers(0, 4096, [16, 40, 3])
        cv2.imwrite(str(data.root / f"images/{i}.png"), image.astype("uint16"))
    text = data.refused(command, caplog, 2)
    assert (
        "train_dataset.transforms: leave values that a model cannot be trained on: band 1" in text
    )
    assert re.search(r"\(16-bit, maximum 409\d, 3 bands\) has mean -0.9\d* and standard dev", text)
    line = yaml.safe_load(
        re.search(r"use (\{type: .*?\}) in train_dataset and val_dataset", text)[1]
    )
    data.transforms = [line]
    data.check(command, 2)


def test_check_dataset_applies_the_transforms(data, caplog):
    data.write([[0, 1]])
    cv2.imwrite(str(data.root / "images/3.png"), np.full([16, 40, 3], 30000, "uint16"))
    data.transforms = [{"type": "RandomDistort"}, {"type": "Normalize"}]
    assert "RandomDistort" in data.refused("check_dataset", caplog, 2)


@pytest.mark.parametrize("ignored", [-300, -1, 256])
def test_an_ignore_index_that_no_label_has(ignored, data, caplog):
    """No pixel is ignored, as in training."""
    data.write([[0, 1], [1, 1]])
    for command in ("train", "check_dataset"):
        with caplog.at_level(logging.INFO, logger="paddleseg_segformer"):
            data.check(command, 2, ignore_index=ignored)
    report = next(r.getMessage() for r in caplog.records if "(ignored)" in r.getMessage())
    rows = [line.split() for line in report.splitlines()[2:]]
    assert rows == [["0", "25.000%", "2"], ["1", "75.000%", "4"], ["(ignored)", "0.000%"]]
    weights = next(r.getMessage() for r in caplog.records if "frequency" in r.getMessage())
    assert "weight: [1.5, 0.5]" in weights  # 3 to 1, with mean 1


def test_one_label_is_in_the_singular(data, caplog):
    for split in ("train", "val"):
        (data.root / f"{split}.txt").write_text("images/0.png masks/0.png\n")
    data.write([[255]])
    assert "the 1 sampled label has the value 255, so that" in data.refused("train", caplog, 2)
    data.write([[0]])
    caplog.clear()
    data.check("train", 2)
    assert "the 1 sampled label has the value 0: no class but 0" in caplog.text
