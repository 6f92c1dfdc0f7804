"""Images on another scale than those that a model was trained on: one warning."""

import json

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from served_model import write_model
from training_runs import draw_scenes, tiny_config

from paddleseg_segformer import Dataset, InputError, Normalize
from paddleseg_segformer.data.image_io import TypeCheck
from paddleseg_segformer.data.validate import check_before_training
from paddleseg_segformer.deploy import export
from paddleseg_segformer.engine import train, validate
from paddleseg_segformer.inference import Predictor, predict
from paddleseg_segformer.inference.model_source import resolve_model

PIXELS = np.random.default_rng(0).integers(0, 255, [64, 96, 3]).astype("uint8")
TYPES = ["uint8", "uint16", "int16", "float32", "float64", "int32", "bool"]
# What the largest value of the 8-bit scale is in each; by the documentation.
UNITS = dict(zip(TYPES, (255, 65535, 32767, 1, 1, 1, 1)))


def model(folder, *types):
    folder.mkdir(exist_ok=True)
    path = write_model(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "image_types": list(types)} if types else manifest))
    return folder


def warnings(caplog):
    return [r.getMessage() for r in caplog.records if "the training images have" in r.getMessage()]


@pytest.mark.parametrize("dtype", TYPES)
def test_types_of_one_scale_are_alike(dtype, caplog):
    for expected in TYPES:
        caplog.clear()
        check = TypeCheck([expected])
        check("a.png", expected)
        check("b.png", dtype)
        check("c.png", dtype)
        differs = UNITS[dtype] != UNITS[expected]
        assert [
            f"its {UNITS[dtype]} is read like their {UNITS[expected]}" in x
            for x in warnings(caplog)
        ] == [True] * differs
    caplog.clear()
    TypeCheck()("a.png", dtype)
    TypeCheck(TYPES)("a.png", dtype)
    assert not caplog.records


def write_png(path):
    cv2.imwrite(str(path), PIXELS.astype("uint16") * 16)


def write_tiff(path):
    Image.fromarray(PIXELS[:, :, 0] / np.float32(255)).save(path)


FILES = {"a.png": (write_png, "16-bit"), "a.tif": (write_tiff, "float32")}


@pytest.mark.parametrize("name", FILES)
def test_files(name, tmp_path, caplog):
    """One sentence for all files, in predict and in Python; the other way round, too."""
    write, kind = FILES[name]
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "0.png"), PIXELS)
    write(images / name)
    write(images / f"b{name}")
    assert predict(model(tmp_path / "model", "uint8"), images, tmp_path / "out")[0] == 3
    (warning,) = warnings(caplog)
    assert f"{images}/" in warning and f"{name}: has {kind} values" in warning
    assert "the training images have 8-bit values" in warning
    caplog.clear()
    predictor = Predictor(tmp_path / "model")
    for source in (images / "0.png", PIXELS, images / name, images / name):
        predictor(source)
    assert len(warnings(caplog)) == 1
    caplog.clear()
    other = {"16-bit": "uint16", "float32": "float64"}[kind]
    predictor = Predictor(model(tmp_path / "other", other))
    predictor(images / name)
    assert not warnings(caplog)
    predictor(PIXELS)
    Predictor(tmp_path / "other")(images / "0.png")
    first, second = warnings(caplog)
    assert first.startswith("The image: has 8-bit values, but the training images have ")
    assert second.startswith(f"{images}/0.png: has 8-bit values, but the training images have ")


def test_models_of_unknown_images(tmp_path, caplog):
    """Of runs without the entry. Of plain weights, ImageNet's normalization is assumed."""
    write_png(tmp_path / "a.png")
    folder = model(tmp_path / "model")
    for source in (folder, folder / "model.pdparams"):
        Predictor(source)(tmp_path / "a.png")
    assert not warnings(caplog)
    (folder / "manifest.json").unlink()
    Predictor(folder / "model.pdparams")(tmp_path / "a.png")
    (warning,) = warnings(caplog)
    assert "16-bit values, but the training images have 8-bit values" in warning


def test_a_raster(tmp_path, caplog):
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    from rasterio.transform import from_origin

    options = {"width": 96, "height": 64, "count": 3, "dtype": "uint16", "driver": "GTiff"}
    path, place = tmp_path / "a.tif", from_origin(500000, 5600000, 10, 10)
    with rasterio.open(path, "w", **options, crs="EPSG:32632", transform=place) as file:
        file.write(PIXELS.transpose(2, 0, 1).astype("uint16") * 16)
    assert predict(model(tmp_path / "model", "uint8"), path, tmp_path / "out") == (1, [])
    (warning,) = warnings(caplog)
    assert f"{path}: has 16-bit values, but the training images have 8-bit values" in warning


def test_an_upload(tmp_path, caplog):
    for package in ("flask", "waitress"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    from paddleseg_segformer.deploy import server

    write_png(tmp_path / "a.png")
    app = server.create_app(Predictor(model(tmp_path / "model", "uint8")))
    for _ in range(2):
        data = (tmp_path / "a.png").read_bytes()
        assert app.test_client().post("/api/segment", data=data).status_code == 200
    (warning,) = warnings(caplog)
    assert warning.startswith("The file: has 16-bit values")


@pytest.mark.integration
def test_an_exported_graph_knows_the_types(tmp_path, caplog):
    write_png(tmp_path / "a.png")
    source = model(tmp_path / "model", "uint8", "float32")
    export(source, tmp_path / "graph", image_path=tmp_path / "a.png")
    assert len(warnings(caplog)) == 1  # of the image on which the two are compared
    caplog.clear()
    path = tmp_path / "graph/deploy.yaml"
    description = yaml.safe_load(path.read_text())
    assert description["image_types"] == ["uint8", "float32"]
    Predictor(tmp_path / "graph")(tmp_path / "a.png")
    (warning,) = warnings(caplog)
    assert "the training images have 8-bit and float32 values" in warning
    path.write_text(yaml.safe_dump({**description, "image_types": 3}))
    with pytest.raises(InputError, match="export the model again"):
        resolve_model(tmp_path / "graph")
    del description["image_types"]
    path.write_text(yaml.safe_dump(description))
    assert resolve_model(tmp_path / "graph").image_types == []


def dataset(root, mode, convert):
    """Four images of a fraction of their type's range, and their labels."""
    root.mkdir()
    for i in range(4):
        cv2.imwrite(str(root / f"{i}.png"), convert(PIXELS))
        Image.fromarray(PIXELS[:, :, 0] % 2).save(root / f"label{i}.png")
    (root / "list.txt").write_text("".join(f"{i}.png label{i}.png\n" for i in range(4)))
    lists = {f"{mode}_path": root / "list.txt"}
    return Dataset(mode, root, [Normalize()], num_classes=2, **lists)


def test_validation_images_of_another_type(tmp_path, caplog):
    """Both data sets can be trained on, but not one for the other."""
    train_set = dataset(tmp_path / "a", "train", lambda x: x)
    val_set = dataset(tmp_path / "b", "val", lambda x: x.astype("uint16") * 16)
    check_before_training(train_set, dataset(tmp_path / "c", "val", lambda x: x))
    assert not warnings(caplog)
    check_before_training(train_set, val_set)
    (warning,) = warnings(caplog)
    assert f"{tmp_path}/b/0.png: has 16-bit values" in warning


def test_training_images_of_several_types(tmp_path, caplog):
    train_set = dataset(tmp_path / "a", "train", lambda x: x)
    check_before_training(train_set)
    assert "several types" not in caplog.text
    cv2.imwrite(str(tmp_path / "a/3.png"), PIXELS.astype("uint16") * 257)
    check_before_training(train_set)
    expected = "train_dataset: has images with values of several types (8-bit and 16-bit), each"
    assert expected in caplog.text


@pytest.mark.integration
def test_a_run_writes_the_types_and_evaluation_reads_them(tmp_path, caplog):
    scenes = draw_scenes(tmp_path / "scenes")
    train(tiny_config(scenes, iters=1), save_dir=str(tmp_path / "run"), do_eval=True)
    for folder in ("iter_1", "best_model"):
        manifest = json.loads((tmp_path / "run" / folder / "manifest.json").read_text())
        assert manifest["image_types"] == ["uint8"] and manifest["format"] == 1
    weights = tmp_path / "run/best_model/model.pdparams"
    validate(tiny_config(scenes), weights)
    assert not warnings(caplog)
    for path in (scenes / "images/validation").iterdir():  # PNG files, whatever their names
        path.write_bytes(cv2.imencode(".png", cv2.imread(str(path)).astype("uint16") * 16)[1])
    validate(tiny_config(scenes), weights)
    (warning,) = warnings(caplog)
    assert f"{scenes}/images/validation/" in warning and ": has 16-bit values" in warning
    caplog.clear()
    config = tiny_config(scenes)
    Predictor(weights, config=config)(path)
    assert len(warnings(caplog)) == 1
