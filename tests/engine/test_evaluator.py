"""The evaluation against an implementation that shares nothing with ours but the network."""

import json
import os
import resource
import select

import cv2
import numpy as np
import paddle
import pytest
from paddleseg.datasets import Dataset
from paddleseg.transforms import Normalize
from PIL import Image
from shared import SHARED, needs_shared

import paddleseg_segformer as ps
from paddleseg_segformer.config import build, load_config
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
    """The specified evaluation, in NumPy: each scale from the original 8-bit image."""
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    total = 0
    for scale in scales:
        factor = min(2048 * scale / max(height, width), 512 * scale / min(height, width))
        sides = [-(-int(side * factor + 0.5) // 32) * 32 for side in (height, width)]
        resized = cv2.resize(image, sides[::-1], interpolation=cv2.INTER_LINEAR)
        normal = ((resized / 255.0 - MEAN) / STD).transpose(2, 0, 1).astype("float32")
        for flip in flips:
            view = np.ascontiguousarray(normal[:, :, ::-1] if flip else normal)
            with paddle.no_grad():
                features = model.backbone(paddle.to_tensor(view)[None])
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
    """Every pixel counted alike, but for those whose two best classes differ by rounding alone."""
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
    """Pixel by pixel, the ignored ones too."""
    test_config = TestConfig(scales=SCALES, flip_horizontal=True)
    segmenter = Segmenter(model, dataset.transforms, test_config)
    for image, _ in dataset.file_list:
        actual = segmenter([segmenter.views(cv2.imread(image))])[0].numpy()
        expected = expected_probabilities(model, image, SCALES, (False, True)).argmax(axis=0)
        assert (actual == expected).mean() >= 0.999


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A configuration with two drawn images to score on, and weights for it."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=1, val=2, size=(96, 96))
    roots = [f"{split}_dataset.dataset_root={root}" for split in ("train", "val")]
    config = load_config(CONFIG, roots)
    paddle.save(build(config, "model")[0].state_dict(), str(root / "model.pdparams"))
    return config, root / "model.pdparams"


def test_figures(trained, tmp_path):
    """The scores', where a link leads."""
    (tmp_path / "link.json").symlink_to(tmp_path / "figures.json")
    scores = validate(*trained, json_path=tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 2 and figures["confusion"] == scores.confusion.tolist()
    assert len(list(tmp_path.iterdir())) == 2


def test_figures_get_a_folder(trained, tmp_path):
    """As a report does."""
    validate(*trained, json_path=tmp_path / "new/deep/figures.json")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["figures.json"]


def test_no_reading_threads_are_one(trained):
    """As PaddleSeg's default value asks for."""
    scores = [validate(*trained, num_workers=workers).confusion for workers in (0, 1)]
    np.testing.assert_array_equal(*scores)


def test_no_file_takes_a_devices_place(trained, tmp_path):
    (tmp_path / "null").symlink_to("/dev/null")
    validate(*trained, json_path=tmp_path / "null")
    assert (tmp_path / "null").is_symlink() and (tmp_path / "null").is_char_device()


def test_figures_that_do_not_fit_on_the_disk_leave_the_old_ones(trained, tmp_path):
    """For which a limit of the size of files stands in."""
    (tmp_path / "figures.json").write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"--json .*figures\.json: cannot be written"):
            validate(*trained, json_path=tmp_path / "figures.json")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_first_process_alone_sees_to_the_figures(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    validate(*trained, json_path=tmp_path / "absent/figures.json")


def test_a_named_pipe_is_opened_for_the_figures_alone(tmp_path):
    """A reader that saw it closed before would be gone when they come."""
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    check_file_writable(tmp_path / "pipe", "--json")
    assert not select.select([reader], [], [], 0)[0]
    os.close(reader)
