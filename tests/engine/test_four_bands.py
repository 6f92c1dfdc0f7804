"""Classes that differ only in the fourth band of 16-bit images, from RGB weights to ONNX."""

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image

from paddleseg_segformer import Predictor
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.deploy import export
from paddleseg_segformer.engine import train, validate
from paddleseg_segformer.inference import predict

pytestmark = pytest.mark.slow

TRAIN, VAL, SIZE, MAXIMUM = 40, 6, 96, 3999
CONFIG = """
_base_: configs/segformer_mit-b0_custom_dataset.yaml
batch_size: 4
iters: 200
train_dataset:
  dataset_root: {0}
  train_path: {0}/train.txt
  num_classes: 2
  img_channels: 4
  transforms:
    - {{type: ResizeStepScaling, min_scale_factor: 0.9, max_scale_factor: 1.1}}
    - {{type: RandomPaddingCrop, crop_size: [96, 96]}}
    - {{type: RandomHorizontalFlip}}
    - type: PhotometricDistortion
      brightness: 8
      contrast: [0.95, 1.05]  # stronger changes would make one class of the other
      saturation: null
      hue: null
    - {{type: Normalize, mean: [0.03], std: [0.015]}}
val_dataset:
  dataset_root: {0}
  val_path: {0}/val.txt
  num_classes: 2
  img_channels: 4
  transforms:
    - {{type: Normalize, mean: [0.03], std: [0.015]}}
model:
  num_classes: 2
  pretrained: {0}/rgb.pdparams
  embedding_dim: 32
  backbone: {{type: MixVisionTransformer, embed_dims: [32, 32, 40, 64], depths: [1, 1, 1, 1]}}
lr_scheduler: {{learning_rate: 3.0e-3}}
"""


def write_tiff(path, values):
    pages = [Image.fromarray(band) for band in values.transpose(2, 0, 1)]
    pages[0].save(path, save_all=True, append_images=pages[1:])


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data set of PNG files, in which the first three bands say nothing about the classes."""
    root, rng = tmp_path_factory.mktemp("four"), np.random.default_rng(0)
    for split, count in (("train", TRAIN), ("val", VAL)):
        lines = []
        for name in (f"{split}_{i}" for i in range(count)):
            patches = rng.integers(0, 2, [2, 2, 4]).repeat(SIZE // 2, 0).repeat(SIZE // 2, 1)
            values = 500 + 2800 * patches + rng.normal(0, 150, patches.shape)
            values = np.clip(values, 0, MAXIMUM).astype("uint16")
            cv2.imwrite(str(root / f"{name}.png"), values[:, :, [2, 1, 0, 3]])
            write_tiff(root / f"{name}.tif", values)
            Image.fromarray(patches[:, :, 3].astype("uint8")).save(root / f"{name}_mask.png")
            lines.append(f"{name}.png {name}_mask.png\n")
        (root / f"{split}.txt").write_text("".join(lines))
    (root / "config.yml").write_text(CONFIG.format(root))
    rgb = ["train_dataset.img_channels=3", "val_dataset.img_channels=3", "model.pretrained=null"]
    (three_bands,) = build(load_config(root / "config.yml", rgb), "model")
    paddle.save(three_bands.state_dict(), str(root / "rgb.pdparams"))
    return root


@pytest.fixture(scope="module")
def model(root):
    train(load_config(root / "config.yml"), save_dir=str(root / "run"), num_workers=0, do_eval=True)
    return root / "run/best_model"


@pytest.fixture(scope="module")
def predictions(root, model):
    predictor = Predictor(model, device="cpu")
    return [predictor(root / f"val_{i}.png") for i in range(VAL)]


def test_unseen_images_are_segmented_as_evaluated(root, model, predictions):
    config = load_config(root / "config.yml")
    scores = validate(config, str(model / "model.pdparams"), report_dir=str(root / "report"))
    assert scores.miou > 0.95
    masks = [np.asarray(Image.open(root / f"val_{i}_mask.png")) for i in range(VAL)]
    right = np.mean([p.label_map == mask for p, mask in zip(predictions, masks)])
    assert right == pytest.approx(scores.accuracy, abs=1e-6)
    for picture in (root / "run/examples.jpg", root / "report/worst_1_photo.jpg"):
        assert np.ptp(cv2.imread(str(picture))) > 200  # stretched: the values are within 0 to 16
    assert predictions[0].image.min() == 0 and predictions[0].image.max() == 255


def test_tiff_files_have_the_same_prediction(root, model, predictions):
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    count = predict(model, str(root / "val_*.tif"), root / "out", device="cpu")
    assert count == (VAL, [])
    for i, prediction in enumerate(predictions):
        written = np.asarray(Image.open(root / f"out/label_map/val_{i}.png"))
        np.testing.assert_array_equal(written, prediction.label_map)


@pytest.mark.parametrize("kind", ["paddle", "onnx"])
def test_exported_models_have_the_same_prediction(kind, root, model, predictions):
    for package in ("onnx", "paddle2onnx", "onnxruntime") if kind == "onnx" else ():
        pytest.importorskip(package, reason=f"{package} is not installed")
    assert export(model, root / kind, format=kind) > 0.999
    graph = Predictor(root / kind)
    assert graph.channels == 4
    for i, prediction in enumerate(predictions):
        same = graph(root / f"val_{i}.png").label_map == prediction.label_map
        assert same.mean() > 0.999
