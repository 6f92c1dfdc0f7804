"""Evaluation against an independent implementation, and against prediction."""

import copy
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
from reference import random_state, softmax
from shared import SHARED, needs_shared
from small_models import tiny_model

import paddleseg_segformer as ps
from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.data.image_io import read_image
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import distributed, evaluate, validate
from paddleseg_segformer.errors import RunError
from paddleseg_segformer.fs import check_file_writable
from paddleseg_segformer.inference import Segmenter, TestConfig

CONFIG = "configs/quickstart.yaml"
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
DRAWN_SIZE, REAL_SIZE = (128, 64), (2048, 512)


def to_fit(target):
    """The ADE20K configs' validation transforms, but for the size."""
    return [ps.ResizeToFit(target, size_divisor=32), Normalize(MEAN.tolist(), STD.tolist())]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Two drawn images, a wide and a high one."""
    root = tmp_path_factory.mktemp("drawn")
    write_scenes(root, train=1, val=2, size=(96, 120))
    write_scenes(root, train=1, val=1, size=(131, 98))  # replaces the first
    return ps.ADE20K(to_fit(DRAWN_SIZE), root, "val")


def random_model(dataset, classes, **options):
    """Its predictions vary: the logits of each class have the mean 0 in an image."""
    state = random_state(classes=classes)
    state["linear_pred.weight"] *= 10
    model = tiny_model(state, **options)
    with paddle.no_grad():
        (logits,) = model(paddle.to_tensor(dataset[0]["img"])[None])
    model.linear_pred.bias.set_value(model.linear_pred.bias - logits.mean(axis=[0, 2, 3]))
    return model


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A published model, and three real images."""
    segformer = ps.SegFormer(19, ps.MixVisionTransformer_B0(norm_epsilon=1e-5), 256)
    ps.load_weights(segformer, SHARED / "weights/segformer_b0_cityscapes_hf")
    segformer.eval()
    root = SHARED / "data/camvid_small"
    listed = tmp_path_factory.mktemp("list") / "val.txt"
    listed.write_text("\n".join((root / "val.txt").read_text().splitlines()[:3]))
    return segformer, Dataset("val", str(root), to_fit(REAL_SIZE), 19, val_path=str(listed))


def interpolate(maps, height, width, align_corners=False):
    """Bilinear, half-pixel centers, float64: ``[C, h, w]`` to ``[C, height, width]``."""
    for axis, target in ((1, height), (2, width)):
        source = maps.shape[axis]
        at = (np.arange(target) + 0.5) * source / target - 0.5
        if align_corners:
            at = np.linspace(0, source - 1, target)
        at = np.clip(at, 0, source - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, source - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        maps = maps.take(low, axis) * (1 - share) + maps.take(high, axis) * share
    return maps


def input_logits(model, image, crop_size, stride):
    """Logits of an input at its size: the mean of those of its windows that cover a pixel."""
    height, width = image.shape[1:]
    total, count = 0, np.zeros([height, width])
    (w, h), (dx, dy) = crop_size or (width, height), stride or (width, height)
    tops = sorted({min(top, max(height - h, 0)) for top in range(0, height, dy)})
    lefts = sorted({min(left, max(width - w, 0)) for left in range(0, width, dx)})
    for window in (np.s_[top : top + h, left : left + w] for top in tops for left in lefts):
        part = np.ascontiguousarray(image[(slice(None), *window)], "float32")
        with paddle.no_grad():
            features = model.backbone(paddle.to_tensor(part)[None])
            logits = model.decode(features)[0].numpy().astype("float64")
        logits = interpolate(logits, *part.shape[1:], model.align_corners)
        whole = np.zeros([len(logits), height, width])
        whole[(slice(None), *window)] = logits
        total = total + whole
        count[window] += 1
    return total / count


def expected_probabilities(model, path, target, test_config):
    """Test-time augmentation in NumPy, with each scale made from the original 8-bit image."""
    image = np.asarray(Image.open(path).convert("RGB"))
    height, width = image.shape[:2]
    flips = [(), (2,)] if test_config.flip_horizontal else [()]
    flips += [(1, *axes) for axes in flips] if test_config.flip_vertical else []
    probabilities = []
    for scale in test_config.scales:
        long, short = (side * scale for side in target)
        factor = min(long / max(height, width), short / min(height, width))
        sides = [-(-int(side * factor + 0.5) // 32) * 32 for side in (height, width)]
        resized = cv2.resize(image, sides[::-1], interpolation=cv2.INTER_LINEAR)
        normal = ((resized / 255.0 - MEAN) / STD).transpose(2, 0, 1)
        for axes in flips:
            windows = test_config.crop_size, test_config.stride
            logits = np.flip(input_logits(model, np.flip(normal, axes), *windows), axes)
            probabilities.append(softmax(interpolate(logits, height, width), axis=0))
    return np.mean(probabilities, axis=0)


def confusion_of(predictions, labels, classes):
    matrix = np.zeros([classes, classes], dtype="int64")
    valid = labels != 255
    np.add.at(matrix, (labels[valid], predictions[valid]), 1)
    return matrix


def assert_identical(model, dataset, target, max_ties, first_class=0):
    """The same confusion matrix, except for pixels where rounding decides between two classes."""
    expected, ties = 0, 0
    for image, label in dataset.file_list:
        probabilities = expected_probabilities(model, image, target, TestConfig())
        labels = np.asarray(Image.open(label)) - np.uint8(first_class)
        confusion = confusion_of(probabilities.argmax(axis=0), labels, dataset.num_classes)
        expected = expected + confusion
        second, best = np.partition(probabilities, -2, axis=0)[-2:]
        ties += ((best - second < 1e-5) & (labels != 255)).sum()
    assert ties < max_ties * expected.sum()
    assert expected.sum(axis=0).max() < 0.7 * expected.sum()  # predictions vary

    scores = evaluate(model, dataset, TestConfig())
    assert scores.confusion.sum() == expected.sum()
    assert np.abs(scores.confusion - expected).sum() <= 2 * ties
    occurring = expected.sum(axis=1) > 0
    union = expected.sum(axis=0) + expected.sum(axis=1) - np.diag(expected)
    expected_iou = np.diag(expected)[occurring] / union[occurring]
    assert scores.miou == pytest.approx(expected_iou.mean(), abs=1e-4)


def test_single_scale_is_identical(scenes):
    assert_identical(random_model(scenes, 150), scenes, DRAWN_SIZE, 3e-3, first_class=1)


@pytest.mark.slow
@needs_shared
def test_single_scale_is_identical_on_real_images(real):
    assert_identical(*real, REAL_SIZE, 1e-4)


def assert_same_labels(model, dataset, target, test_config):
    """Compared pixel by pixel, including ignored ones."""
    segmenter = Segmenter(model, dataset.transforms.transforms, test_config)
    for image, _ in dataset.file_list:
        actual = segmenter([segmenter.augmented_inputs(read_image(image))])[0].numpy()
        expected = expected_probabilities(model, image, target, test_config).argmax(axis=0)
        assert np.bincount(expected.ravel()).max() < 0.7 * expected.size  # predictions vary
        assert (actual == expected).mean() >= 0.999


WINDOWS = {"crop_size": (64, 48), "stride": (40, 32)}
TEST_CONFIGS = {
    "multi-scale + flip": {"scales": (0.5, 1.0, 1.75), "flip_horizontal": True},
    "both flips": {"flip_horizontal": True, "flip_vertical": True},
    "sliding window": WINDOWS,
    "all": {"scales": (0.5, 1.5), "flip_vertical": True, **WINDOWS},
}


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("name", TEST_CONFIGS)
def test_augmentation(name, align_corners, scenes):
    model = random_model(scenes, 12, align_corners=align_corners)
    assert_same_labels(model, scenes, DRAWN_SIZE, TestConfig(**TEST_CONFIGS[name]))


@pytest.mark.slow
@needs_shared
def test_multi_scale_and_flip_on_real_images(real):
    assert_same_labels(*real, REAL_SIZE, TestConfig(scales=SCALES, flip_horizontal=True))


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


def test_the_training_mode_is_restored(scenes):
    """Also after an error; images are evaluated without it, in the order of the data set."""
    modes, seen = [], []

    class Model(Recorder):
        def forward(self, x):
            modes.append(self.training)
            return [paddle.zeros([1, 150, *x.shape[2:]])]

    observe = lambda index, labels, *results: seen.append((index, labels.shape))  # noqa: E731
    for training in (True, False):
        model = Model()
        model.train() if training else model.eval()
        evaluate(model, scenes, TestConfig(), observe=observe)
        assert model.training is training
        with pytest.raises(ZeroDivisionError):
            evaluate(model, scenes, TestConfig(), observe=lambda *results: 1 / 0)
        assert model.training is training
    assert not any(modes) and seen == [(0, (98, 131)), (1, (120, 96))] * 2


class Floats(ps.Dataset):
    """A custom data set of images that 8 bits do not hold."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        return {**sample, "img": sample["img"].astype("float32") * 300 + 0.5}


def test_images_of_more_than_8_bits_are_kept(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, [40, 60, 3], "uint8")
    Image.fromarray(image).save(tmp_path / "image.png")
    Image.fromarray(np.zeros([40, 60], "uint8")).save(tmp_path / "label.png")
    (tmp_path / "val.txt").write_text("image.png label.png\n")
    model, lists = Recorder(), {"val_path": str(tmp_path / "val.txt")}
    evaluate(model, Floats("val", str(tmp_path), [], 3, **lists), TestConfig())
    expected = image.transpose(2, 0, 1) * np.float32(300) + np.float32(0.5)
    np.testing.assert_array_equal(model.inputs[0][0], expected)


@pytest.mark.parametrize("threads", [2, 3, 4])
def test_images_that_are_evaluated_together(threads, scenes, use_threads):
    """Three images, some of them at a time, have the results of each alone, in their order."""
    model, dataset = random_model(scenes, 150), copy.copy(scenes)
    dataset.file_list = [scenes.file_list[i] for i in (0, 1, 0)]
    alone = evaluate(model, dataset, TestConfig()).confusion
    use_threads(threads)
    order = []
    observe = lambda index, *_: order.append(index)  # noqa: E731
    together = evaluate(model, dataset, TestConfig(), observe=observe).confusion
    assert order == [0, 1, 2]
    assert together.sum() == alone.sum() and np.abs(together - alone).sum() < 1e-3 * alone.sum()


def test_processes_share_the_images(scenes, monkeypatch):
    """Each image is evaluated by one process."""
    model = random_model(scenes, 150)
    whole, parts = evaluate(model, scenes, TestConfig()).confusion, []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "all_reduce_sum", lambda array: array)
        parts.append(evaluate(model, scenes, TestConfig()).confusion)
    np.testing.assert_array_equal(sum(parts), whole)
    assert all(part.any() for part in parts)


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
    assert figures["protocol"]["scales"] == [1] and not figures["protocol"]["flip_horizontal"]


def test_options_override_the_config(trained, tmp_path):
    options = {"aug_eval": True, "scales": [0.5, 1], "flip_vertical": True}
    validate(*trained, json_path=tmp_path / "figures.json", **options)
    protocol = json.loads((tmp_path / "figures.json").read_text())["protocol"]
    assert (protocol["scales"], protocol["flip_vertical"]) == ([0.5, 1], True)


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
