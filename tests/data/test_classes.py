"""Class names and colors from labels.txt, PaddleSeg's convention."""

import json
import logging
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer import InputError
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data import class_names, palette
from paddleseg_segformer.data.classes import out_of_range_label, read_class_table
from paddleseg_segformer.engine import train, validate
from paddleseg_segformer.inference import Predictor

LABELS = "\ufeffwall\r\n  traffic light 250 170 30 \r\n\r\nzone 30\t1 2 3\r\n"


def data_set(root, classes):
    return SimpleNamespace(dataset_root=str(root), num_classes=classes)


def test_a_line_has_a_name_and_optionally_a_color(tmp_path):
    (tmp_path / "labels.txt").write_bytes(LABELS.encode())
    found = data_set(tmp_path, 3)
    assert class_names(found) == ["wall", "traffic light", "zone 30"]
    assert palette(found)[1:3].tolist() == [[250, 170, 30], [1, 2, 3]]
    assert palette(found)[[0, 3]].tolist() == [[128, 0, 0], [0, 0, 128]]  # PaddleSeg's own
    assert palette(found).shape == (256, 3)


def test_a_wrong_number_of_names_is_one_warning(tmp_path, caplog):
    (tmp_path / "labels.txt").write_text(LABELS, encoding="utf-8")
    for _ in range(2):
        assert class_names(data_set(tmp_path, 4)) == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(palette(data_set(tmp_path, 4)), palette(data_set("", 4)))
    assert caplog.text.count("labels.txt: has 3 names, but num_classes is 4") == 1


def test_without_a_file_classes_are_numbered(tmp_path):
    for root in (tmp_path, ""):
        assert class_names(data_set(root, 3)) == ["0", "1", "2"]


def test_names_and_colors_of_the_class_come_before_the_file(tmp_path):
    (tmp_path / "labels.txt").write_text("wall 1 2 3\nsky\n")
    found = data_set(tmp_path, 2)
    found.CLASS_NAMES, found.PALETTE = ("road", "car"), [[7, 8, 9], [250, 0, 1]]
    assert class_names(found) == ["road", "car"]
    assert palette(found).tolist() == [[7, 8, 9], [250, 0, 1]] and palette(found).dtype == "uint8"
    found.num_classes = 3  # a subclass with another number
    assert class_names(found) == ["0", "1", "2"]


def test_a_class_table_has_columns_in_any_order(tmp_path):
    (tmp_path / "classes.tsv").write_text("red\tblue\tname\tgreen\n1\t3\tthe sea\t2\n")
    names, colors = read_class_table(tmp_path / "classes.tsv")
    assert names == ["the sea"] and colors.tolist() == [[1, 2, 3]] and colors.dtype == "uint8"


def test_a_color_out_of_range_is_an_error(tmp_path):
    (tmp_path / "labels.txt").write_text("wall 1 2 255\n")
    assert palette(data_set(tmp_path, 1))[0].tolist() == [1, 2, 255]
    (tmp_path / "labels.txt").write_text("wall 1 2 256\n")
    with pytest.raises(InputError, match=r"labels.txt: 'wall 1 2 256' .* are 0 to 255"):
        class_names(data_set(tmp_path, 1))
    (tmp_path / "labels.txt").write_text(f"wall 1 2 {'9' * 5000}\n")  # too many for int()
    with pytest.raises(InputError, match=r"labels.txt: 'wall 1 2 9{91}' has no valid color"):
        class_names(data_set(tmp_path, 1))


def test_another_encoding_is_an_error(tmp_path):
    (tmp_path / "labels.txt").write_bytes("道路\n".encode("gbk"))
    with pytest.raises(InputError, match=r"labels.txt: is not UTF-8"):
        class_names(data_set(tmp_path, 1))


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([0, 1, 2], None),
        ([0, 255, 2], None),
        ([], None),
        ([0, 3, 255], 3),
        ([0, 3], 3),
        ([-1, 2], -1),
        ([0, 254, 255], 254),
    ],
)
def test_out_of_range_label(labels, expected):
    assert out_of_range_label(np.array(labels, "int64"), 3, ignore_index=255) == expected


def test_an_ignored_class_is_in_range():
    assert out_of_range_label(np.array([0, 1, 2]), 3, ignore_index=0) is None


@pytest.mark.integration
def test_names_and_colors_in_manifest_report_and_predictions(request, tmp_path, caplog):
    """Of labels.txt: in a run's manifest, the class table, the report and predicted images."""
    caplog.set_level(logging.INFO)
    root, random = tmp_path / "data", np.random.default_rng(0)
    root.mkdir()
    for i in range(2):
        cv2.imwrite(str(root / f"{i}.png"), random.integers(0, 256, [64, 64, 3], "uint8"))
        cv2.imwrite(str(root / f"{i}_mask.png"), random.integers(0, 2, [64, 64], "uint8"))
    (root / "train.txt").write_text("0.png 0_mask.png\n1.png 1_mask.png\n")
    (root / "labels.txt").write_text("field 10 20 30\nhedge row 40 50 60\n")
    data = {"type": "Dataset", "dataset_root": str(root), "num_classes": 2}
    data["transforms"] = [{"type": "Normalize"}]
    splits = {
        split: {**data, "mode": split, f"{split}_path": f"{root}/train.txt"}
        for split in ("train", "val")
    }
    overrides = [f"{split}_dataset={json.dumps(value)}" for split, value in splits.items()]
    config = request.config.rootpath / "configs/quickstart.yaml"
    overrides += ["model.num_classes=2", "model.embedding_dim=8"]
    stages = "embed_dims: [4, 8, 20, 32], depths: [1, 1, 1, 1]"
    overrides.append(f"model.backbone={{type: MixVisionTransformer, {stages}}}")

    train(load_config(config, overrides, iters=1, batch_size=2), save_dir=str(tmp_path / "run"))
    manifest = json.loads((tmp_path / "run/iter_1/manifest.json").read_text())
    assert manifest["classes"] == ["field", "hedge row"]
    assert manifest["palette"][:2] == [[10, 20, 30], [40, 50, 60]]

    weights = tmp_path / "run/iter_1/model.pdparams"
    validate(load_config(config, overrides), weights, report_dir=tmp_path / "report")
    assert "hedge row" in caplog.text
    page = (tmp_path / "report/report.html").read_text()
    assert "hedge row" in page and "#28323c" in page

    for name, settings in (("manifest", None), ("config", load_config(config, overrides))):
        found = Predictor(weights, config=settings)(root / "0.png")
        assert found.classes == ["field", "hedge row"], name
        expected = np.array([[10, 20, 30], [40, 50, 60]])[found.label_map]
        np.testing.assert_array_equal(np.asarray(found.color_map()), expected, err_msg=name)
        found.label_image().save(tmp_path / "labels.png")
        shown = Image.open(tmp_path / "labels.png").convert("RGB")
        np.testing.assert_array_equal(np.asarray(shown), expected, err_msg=name)
