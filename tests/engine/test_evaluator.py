"""Evaluation against an independent implementation, and against prediction."""

import json
import os
import resource
import select

import cv2
import numpy as np
import paddle
import pytest
from paddleseg.datasets import Dataset
from paddleseg.transforms import Normalize, Padding, Resize
from PIL import Image
from shared import SHARED, needs_shared

import paddleseg_segformer as ps
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import distributed, evaluate, validate
from paddleseg_segformer.errors import RunError
from paddleseg_segformer.fs import check_file_writable
from paddleseg_segformer.inference import Segmenter, TestConfig

CONFIG = "configs/quickstart.yaml"
ROOT = SHARED / "data/camvid_small"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


@pytest.fixture(scope="module")
def model():
    segformer = ps.SegFormer(19, ps.MixVisionTransformer_B0(norm_epsilon=1e-5), 256)
    ps.load_weights(segformer, SHARED / "weights/segformer_b0_cityscapes_hf")
    segformer.eval()
    return segformer


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Three real images, through the ADE20K configs' validation transforms."""
    lines = (ROOT / "val.txt").read_text().splitlines()[:3]
    listed = tmp_path_factory.mktemp("list") / "val.txt"
    listed.write_text("\n".join(lines))
    transforms = [
        ps.ResizeToFit([2048, 512], size_divisor=32),
        Normalize(MEAN.tolist(), STD.tolist()),
    ]
    return Dataset("val", str(ROOT), transforms, 19, val_path=str(listed))


def interpolate(maps, height, width):
    """Bilinear, half-pixel centres, float64: ``[C, h, w]`` to ``[C, height, width]``."""
    for axis, target in ((1, height), (2, width)):
        source = maps.shape[axis]
        at = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


def expected_probabilities(model, path, scales, flips):
    """Multi-scale + flip in NumPy, with each scale made from the original 8-bit image."""
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    total = 0
    for scale in scales:
        factor = min(2048 * scale / max(height, width), 512 * scale / min(height, width))
        sides = [-(-int(side * factor + 0.5) // 32) * 32 for side in (height, width)]
        resized = cv2.resize(image, sides[::-1], interpolation=cv2.INTER_LINEAR)
        normal = ((resized / 255.0 - MEAN) / STD).transpose(2, 0, 1).astype("float32")
        for flip in flips:
            inputs = np.ascontiguousarray(normal[:, :, ::-1] if flip else normal)
            with paddle.no_grad():
                features = model.backbone(paddle.to_tensor(inputs)[None])
                logits = model.decode(features)[0].numpy().astype("float64")
            if flip:
                logits = logits[:, :, ::-1]
            logits = interpolate(interpolate(logits, *sides), height, width)
            exponentials = np.exp(logits - logits.max(axis=0))
            total = total + exponentials / exponentials.sum(axis=0)
    return total / (len(scales) * len(flips))


def confusion_of(predictions, labels):
    matrix = np.zeros([19, 19], dtype="int64")
    valid = labels != 255
    np.add.at(matrix, (labels[valid], predictions[valid]), 1)
    return matrix


@needs_shared
def test_single_scale_is_identical(model, dataset):
    """The same confusion matrix, except for pixels where rounding decides between two classes."""
    expected, ties = 0, 0
    for image, label in dataset.file_list:
        probabilities = expected_probabilities(model, image, (1.0,), (False,))
        labels = np.asarray(Image.open(label))
        expected = expected + confusion_of(probabilities.argmax(axis=0), labels)
        second, best = np.partition(probabilities, -2, axis=0)[-2:]
        ties += ((best - second < 1e-5) & (labels != 255)).sum()
    assert ties < 1e-4 * expected.sum()

    scores = evaluate(model, dataset, TestConfig())
    assert scores.confusion.sum() == expected.sum()
    assert np.abs(scores.confusion - expected).sum() <= 2 * ties
    occurring = expected.sum(axis=1) > 0
    union = expected.sum(axis=0) + expected.sum(axis=1) - np.diag(expected)
    expected_iou = np.diag(expected)[occurring] / union[occurring]
    assert scores.miou == pytest.approx(expected_iou.mean(), abs=1e-4)


@needs_shared
def test_multi_scale_and_flip(model, dataset):
    """Compared pixel by pixel, including ignored ones."""
    test_config = TestConfig(scales=SCALES, flip_horizontal=True)
    segmenter = Segmenter(model, dataset.transforms.transforms, test_config)
    for image, _ in dataset.file_list:
        actual = segmenter([segmenter.augmented_inputs(read_image(image))])[0].numpy()
        expected = expected_probabilities(model, image, SCALES, (False, True)).argmax(axis=0)
        assert (actual == expected).mean() >= 0.999


class Recorder(paddle.nn.Layer):
    """A model that records its inputs, and whose logits are the image's channels."""

    def __init__(self):
        super().__init__()
        self.inputs = []

    def forward(self, x):
        self.inputs.append(x.numpy())
        return [x]


@pytest.mark.parametrize("kind", [Dataset, ps.Dataset], ids=["PaddleSeg's", "ours"])
@pytest.mark.parametrize(
    "transforms",
    [
        [],
        [ps.Normalize(MEAN.tolist(), STD.tolist())],
        [Normalize(MEAN.tolist(), STD.tolist())],
        [ps.ResizeToFit([64, 48], size_divisor=32), ps.Normalize()],
        [Resize((50, 40)), Padding((64, 64)), ps.Normalize()],
        [Resize((50, 40)), ps.Normalize(), ps.Padding((64, 64), im_padding_value=0)],
    ],
    ids=lambda transforms: "-".join(type(t).__name__ for t in transforms),
)
@pytest.mark.parametrize(
    "test_config",
    [TestConfig(), TestConfig(scales=(0.5, 1.0), flip_horizontal=True)],
    ids=["single scale", "multi-scale + flip"],
)
def test_validation_and_prediction_are_identical(kind, transforms, test_config, tmp_path):
    """In the model's inputs, to the last bit, and in the label map."""
    image = np.random.default_rng(0).integers(0, 256, [40, 60, 3], "uint8")
    Image.fromarray(image).save(tmp_path / "image.jpg")
    Image.fromarray(np.zeros([40, 60], "uint8")).save(tmp_path / "label.png")
    (tmp_path / "val.txt").write_text("image.jpg label.png\n")
    dataset = kind("val", str(tmp_path), transforms, 3, val_path=str(tmp_path / "val.txt"))
    validation, predictions = Recorder(), []
    observe = lambda index, labels, prediction, confusion: predictions.append(prediction)  # noqa: E731
    evaluate(validation, dataset, test_config, observe=observe)

    prediction = Recorder()
    segmenter = Segmenter(prediction, transforms, test_config)
    inputs = segmenter.augmented_inputs(read_image(tmp_path / "image.jpg"))
    np.testing.assert_array_equal(segmenter([inputs])[0].numpy(), predictions[0])
    assert len(validation.inputs) == len(inputs)
    order = lambda x: (x.shape, x.tobytes())  # noqa: E731 (the model runs in parallel)
    for ours, theirs in zip(*(sorted(m.inputs, key=order) for m in (prediction, validation))):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", [Dataset, ps.Dataset], ids=["PaddleSeg's", "ours"])
def test_single_scale_inputs_are_the_samples(kind, tmp_path):
    """Grayscale or color, the model gets what the data set's own transforms return."""
    (tmp_path / "val.txt").write_text("image.png label.png\n")
    for channels in (1, 3):
        shape = [40, 60, 3][: 2 + channels // 2]
        image = np.random.default_rng(0).integers(0, 256, shape, "uint8")
        Image.fromarray(image).save(tmp_path / "image.png")
        Image.fromarray(np.zeros([40, 60], "uint8")).save(tmp_path / "label.png")
        for transforms in ([Resize((50, 40)), ps.Normalize()], [ps.Normalize()], []):
            lists = {"val_path": str(tmp_path / "val.txt"), "img_channels": channels}
            dataset = kind("val", str(tmp_path), transforms, 3, **lists)
            model = Recorder()
            evaluate(model, dataset, TestConfig())
            np.testing.assert_array_equal(model.inputs[0][0], dataset[0]["img"])


def test_transforms_that_fail_name_the_image(tmp_path):
    Image.fromarray(np.zeros([40, 60, 3], "uint8")).save(tmp_path / "image.png")
    Image.fromarray(np.zeros([40, 60], "uint8")).save(tmp_path / "label.png")
    (tmp_path / "val.txt").write_text("image.png label.png\n")
    transforms = [Padding((16, 16))]
    dataset = ps.Dataset("val", tmp_path, transforms, 3, val_path=tmp_path / "val.txt")
    with pytest.raises(ps.InputError, match=r"image\.png: cannot be transformed \(.*larger"):
        evaluate(Recorder(), dataset, TestConfig())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A config with a validation set of two scenes, and weights for it."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=1, val=2, size=(96, 96))
    roots = [f"{split}_dataset.dataset_root={root}" for split in ("train", "val")]
    config = load_config(CONFIG, roots)
    paddle.save(build(config, "model")[0].state_dict(), str(root / "model.pdparams"))
    return config, root / "model.pdparams"


def test_figures(trained, tmp_path):
    """They are written to the target of a symbolic link."""
    (tmp_path / "link.json").symlink_to(tmp_path / "figures.json")
    scores = validate(*trained, json_path=tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 2 and figures["confusion"] == scores.confusion.tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_the_folder_of_figures_is_created(trained, tmp_path):
    validate(*trained, json_path=tmp_path / "new/deep/figures.json")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["figures.json"]


def test_zero_workers_mean_one(trained):
    """0 is PaddleSeg's default value."""
    scores = [validate(*trained, num_workers=workers).confusion for workers in (0, 1)]
    np.testing.assert_array_equal(*scores)


def test_a_device_is_not_replaced_by_a_file(trained, tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    validate(*trained, json_path=tmp_path / "null")
    assert (tmp_path / "null").is_symlink() and (tmp_path / "null").is_char_device()


def test_a_full_disk_keeps_the_old_figures(trained, tmp_path):
    """Simulated by a limit of the file size."""
    (tmp_path / "figures.json").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"--json .*figures\.json: cannot be written"):
            validate(*trained, json_path=tmp_path / "figures.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_only_the_first_process_writes_figures(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    validate(*trained, json_path=tmp_path / "absent/figures.json")


def test_a_named_pipe_is_opened_only_to_write_the_figures(tmp_path):
    """A reader would stop when the check closed it."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_file_writable(tmp_path / "pipe", "--json")
    assert not select.select([reader], [], [], 0)[0]
    os.close(reader)
