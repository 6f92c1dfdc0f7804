"""A published checkpoint, trained on Cityscapes, in Hugging Face's format."""

import cv2
import numpy as np
import paddle
import pytest
from optional import skip_without_quantizer
from paddleseg.transforms import Compose, Normalize, Resize
from shared import SHARED, needs_shared

import paddleseg_segformer as ps
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.deploy import export
from paddleseg_segformer.engine.metrics import Scores, confusion_matrix
from paddleseg_segformer.inference import Predictor, Segmenter, TestConfig
from paddleseg_segformer.inference.model_source import resolve_model

pytestmark = needs_shared

NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

CAMVID_ROOT = SHARED / "data/camvid_small"

# CamVid's class of each of Cityscapes' 19 classes.
CAMVID = {
    "road": "road",
    "sidewalk": "pavement",
    "building": "building",
    "wall": "building",
    "fence": "fence",
    "pole": "pole",
    "traffic light": "sign",
    "traffic sign": "sign",
    "vegetation": "tree",
    "terrain": "tree",
    "sky": "sky",
    "person": "pedestrian",
    "rider": "bicyclist",
    "car": "car",
    "truck": "car",
    "bus": "car",
    "train": "car",
    "motorcycle": "bicyclist",
    "bicycle": "bicyclist",
}


@pytest.fixture(scope="module")
def model():
    segformer = ps.SegFormer(19, ps.MixVisionTransformer_B0(norm_epsilon=1e-5), 256)
    result = ps.load_weights(segformer, SHARED / "weights/segformer_b0_cityscapes_hf")
    assert not result.missing and not result.unexpected
    segformer.eval()
    return segformer


@pytest.mark.integration
def test_demo_image(model):
    """Hugging Face's logits are float16, hence the tolerance."""
    image = Compose([NORMALIZE])({"img": str(SHARED / "reference/cityscapes_demo.png")})["img"]
    expected = np.load(SHARED / "reference/cityscapes_demo_logits.npz")
    with paddle.no_grad():
        images = paddle.to_tensor(image)[None]
        logits = model.decode(model.backbone(images)).numpy()
        labels = model(images)[0].argmax(axis=1)[0].numpy()
    assert abs(logits - expected["logits"].astype("float32")).max() <= 0.05
    assert (labels == expected["argmax_full"]).mean() >= 0.999


def camvid_scores(label_map):
    """The scores on CamVid's validation images; ``label_map`` is a function of an image's path."""
    names = [name.strip() for name in (CAMVID_ROOT / "labels.txt").read_text().split("\n")]
    names = [name for name in names if name]
    to_camvid = np.array([names.index(name) for name in CAMVID.values()])
    confusion = 0
    for line in (CAMVID_ROOT / "val.txt").read_text().splitlines():
        image, label = (str(CAMVID_ROOT / part) for part in line.split())
        labels = cv2.imread(label, cv2.IMREAD_UNCHANGED)
        confusion = confusion + confusion_matrix(labels, to_camvid[label_map(image)], 11, 255)
    return Scores(confusion, names)


@pytest.mark.slow
def test_camvid(model):
    """transformers gets mIoU 0.7405 and accuracy 0.9413 on the same images."""
    segmenter = Segmenter(model, [Resize((960, 720)), NORMALIZE], TestConfig())

    def label_map(image):
        return segmenter([segmenter.augmented_inputs(read_image(image))])[0].numpy()

    scores = camvid_scores(label_map)
    assert scores.miou == pytest.approx(0.7405, abs=0.002)
    assert scores.accuracy == pytest.approx(0.9413, abs=0.001)


@pytest.mark.slow
def test_camvid_in_int8(tmp_path):
    """Calibrated on training images: close to the scores of float32 above."""
    skip_without_quantizer()
    weights = SHARED / "weights/segformer_b0_cityscapes_hf"
    config = resolve_model(weights).config
    resize = {"type": "Resize", "target_size": [960, 720]}
    options = config.dic["val_dataset"]
    options["transforms"] = [resize, *options["transforms"]]
    images = [line.split()[0] for line in (CAMVID_ROOT / "train.txt").read_text().splitlines()]
    (tmp_path / "images.txt").write_text("\n".join(str(CAMVID_ROOT / x) for x in images[::3]))
    weights, images = weights / "model.safetensors", tmp_path / "images.txt"
    export_options = {"format": "onnx", "int8": True, "output_op": "none"}
    agreement = export(weights, tmp_path, images, config, **export_options)
    assert agreement > 0.99
    predictor = Predictor(tmp_path, backend="onnxruntime")
    scores = camvid_scores(lambda image: predictor(image).label_map)
    assert scores.miou == pytest.approx(0.7405, abs=0.01)
    assert scores.accuracy == pytest.approx(0.9413, abs=0.003)
