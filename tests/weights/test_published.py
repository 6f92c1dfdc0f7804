"""A published checkpoint, trained on Cityscapes, in Hugging Face's format."""

import cv2
import numpy as np
import paddle
import pytest
from paddleseg.transforms import Compose, Normalize, Resize
from shared import SHARED, needs_shared

import paddleseg_segformer as ps
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.engine.metrics import Scores, confusion_matrix
from paddleseg_segformer.inference import Segmenter, TestConfig

pytestmark = needs_shared

NORMALIZE = Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

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


@pytest.mark.slow
def test_camvid(model):
    """transformers gets mIoU 0.7405 and accuracy 0.9413 on the same images."""
    root = SHARED / "data/camvid_small"
    names = [name.strip() for name in (root / "labels.txt").read_text().split("\n") if name.strip()]
    to_camvid = np.array([names.index(name) for name in CAMVID.values()])
    segmenter = Segmenter(model, [Resize((960, 720)), NORMALIZE], TestConfig())
    confusion = 0
    for line in (root / "val.txt").read_text().splitlines():
        image, label = (str(root / part) for part in line.split())
        inputs = segmenter.augmented_inputs(read_image(image))
        predictions = to_camvid[segmenter([inputs])[0].numpy()]
        labels = cv2.imread(label, cv2.IMREAD_UNCHANGED)
        confusion = confusion + confusion_matrix(labels, predictions, 11, 255)
    scores = Scores(confusion, names)
    assert scores.miou == pytest.approx(0.7405, abs=0.002)
    assert scores.accuracy == pytest.approx(0.9413, abs=0.001)
