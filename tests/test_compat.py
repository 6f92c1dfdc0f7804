"""PaddleSeg's losses and models that fail on Paddle 3 without the patches."""

import json
import subprocess
import sys
import types

import numpy as np
import paddle
import pytest
from paddleseg.cvlibs import manager

from paddleseg_segformer import compat

LOSSES, MODELS = manager.LOSSES.components_dict, manager.MODELS.components_dict


def normal(*shape, seed=0):
    return np.random.RandomState(seed).standard_normal(shape).astype("float32")


LABEL = np.random.RandomState(9).randint(0, 5, [2, 32, 32])
LABEL[:, :4] = 255
LOGITS = normal(2, 5, 32, 32) * 3
EDGE_LOGITS = normal(2, 1, 32, 32, seed=2) + np.float32(0.8)
POINTS = np.random.RandomState(1).rand(2, 64, 2).astype("float32")

# Loss, and dot product of its gradient with random numbers, of PaddleSeg 2.8.0 on Paddle 2.6.2.
PADDLE_2_RESULTS = {
    "OhemCrossEntropyLoss": ({"min_kept": 100}, LOGITS, 4.2263536, -1.9497133e-4),
    "OhemEdgeAttentionLoss": ({"min_kept": 50}, (LOGITS, EDGE_LOGITS), 4.1887765, 5.0850287e-2),
    "PointCrossEntropyLoss": ({}, (normal(2, 5, 64, seed=6), POINTS), 1.9331903, 1.0646094e-2),
    "RMILoss": ({"num_classes": 5}, LOGITS, 5.2249360, -6.8677440e-3),
    "DualTaskLoss": ({}, LOGITS, 6.2281169e-2, -1.4655273e-3),
}


def run(name, options, inputs, *labels):
    """A loss, and the gradient of its first input."""
    several = isinstance(inputs, tuple)
    tensors = [paddle.to_tensor(array) for array in (inputs if several else [inputs])]
    tensors[0].stop_gradient = False
    paddle.seed(3)  # of DualTaskLoss
    first = tuple(tensors) if several else tensors[0]
    loss = LOSSES[name](**options)(first, *map(paddle.to_tensor, labels))
    loss.backward()
    return float(loss), tensors[0].grad.numpy()


@pytest.mark.parametrize("name", PADDLE_2_RESULTS)
def test_losses_equal_those_on_paddle_2(name):
    options, inputs, expected, expected_gradient = PADDLE_2_RESULTS[name]
    loss, gradient = run(name, options, inputs, LABEL)
    assert loss == pytest.approx(expected, rel=1e-5)
    along = float((gradient * normal(*gradient.shape, seed=5)).sum())
    assert along == pytest.approx(expected_gradient, rel=1e-3)


def test_distillation_is_the_cross_entropy_with_the_teacher():
    teacher = normal(2, 5, 32, 32, seed=4)
    loss, _ = run("DistillCrossEntropyLoss", {}, LOGITS, teacher, LABEL)
    log_probabilities = LOGITS - np.log(np.exp(LOGITS).sum(1, keepdims=True))
    targets = np.exp(teacher) / np.exp(teacher).sum(1, keepdims=True)
    each = -(targets * log_probabilities).sum(1)
    assert loss == pytest.approx(each[LABEL != 255].mean(), rel=1e-5)


def test_relaxed_boundary_counts_every_class_next_to_a_pixel():
    label = np.zeros([1, 6, 6], "int64")
    label[0, :, 3:] = 1
    logits = normal(1, 3, 6, 6)
    loss, gradient = run("RelaxBoundaryLoss", {}, logits, label)
    probabilities = np.exp(logits[0]) / np.exp(logits[0]).sum(0)
    allowed = np.zeros([3, 6, 6], bool)
    allowed[0, :, :4] = allowed[1, :, 2:] = True
    expected = -np.log((probabilities * allowed).sum(0)).sum() / (36 + 1)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert np.abs(gradient).sum() > 0.1  # 0 on Paddle 2, which rounded the logarithms


@pytest.mark.parametrize(
    "name, options",
    [
        ("DecoupledSegNet", {"backbone_indices": (0, 3)}),
        ("ISANet", {"enable_auxiliary_loss": False}),
        ("SFNet", {"backbone_indices": (0, 1, 2, 3)}),
    ],
)
def test_models_run(name, options):
    backbone = manager.BACKBONES.components_dict["ResNet18_vd"](output_stride=8)
    model = MODELS[name](num_classes=5, backbone=backbone, **options)
    model.eval()
    width = 128 if paddle.__version__.startswith("2.") else 96  # ISANet cannot pad on Paddle 2.6
    (logits,) = model(x=paddle.zeros([1, 3, 64, width]))[:1]
    assert logits.shape == [1, 5, 64, width]
    assert np.isfinite(logits.numpy()).all()


def test_operators_are_restored():
    floats, integers = paddle.ones([2]), paddle.ones([2], dtype="int64")
    original = paddle.Tensor.__mul__
    with compat.type_promotion():
        assert (integers * floats / 2).tolist() == [0.5, 0.5]
        assert (paddle.to_tensor([True, False]) + integers).tolist() == [2, 1]
        assert (integers.astype("int32") - integers).dtype == paddle.int64
    assert paddle.Tensor.__mul__ is original


def test_operators_are_restored_after_the_last_thread():
    floats, integers = paddle.ones([2]), paddle.ones([2], dtype="int64")
    original = paddle.Tensor.__mul__
    first, second = compat.type_promotion(), compat.type_promotion()
    first.__enter__()
    second.__enter__()  # like another thread
    first.__exit__(None, None, None)
    assert (integers * floats).tolist() == [1, 1]
    second.__exit__(None, None, None)
    assert paddle.Tensor.__mul__ is original


def test_areas_are_counted_without_ignored_pixels():
    label = paddle.to_tensor([[[0, 0, 1], [1, 2, 255]]])
    pred = paddle.to_tensor([[[[0, 1, 1], [2, 2, 0]]]])
    areas = compat.calculate_area(pred, label, 4)
    assert [area.tolist() for area in areas] == [[1, 1, 1, 0], [1, 2, 2, 0], [2, 2, 1, 0]]
    # a label that is no class counts for the prediction alone; 0 is ignored
    areas = compat.calculate_area(pred[0], paddle.to_tensor([[[0, 0, 1], [1, 2, 9]]]), 3, 0)
    assert [area.tolist() for area in areas] == [[0, 1, 1], [1, 1, 2], [0, 2, 1]]


def test_vision_transformer_needs_no_file_of_weights():
    model = manager.BACKBONES.components_dict["ViT_small_patch16_224"](img_size=32)
    assert isinstance(model, compat.VisionTransformer)
    maps, _ = model(paddle.zeros([1, 3, 32, 32]))
    assert np.isfinite(maps[-1].numpy()).all()


def test_vision_transformer_loads_its_file_of_weights(tmp_path):
    build = manager.BACKBONES.components_dict["ViT_small_patch16_224"]
    weights = build(img_size=32).state_dict()
    paddle.save(weights, str(tmp_path / "vit.pdparams"))
    found = build(img_size=32, pretrained=str(tmp_path / "vit.pdparams")).state_dict()
    for name in ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"):
        np.testing.assert_array_equal(found[name].numpy(), weights[name].numpy())


class Host:
    """Stands in for a release of PaddleSeg: its train loop and how it counts areas."""

    def __init__(self, monkeypatch, train, calculate_area):
        self.loop = types.SimpleNamespace(train=train, loss_computation=self.loss_computation)
        self.calls, self.original = 0, self.loop.loss_computation
        self.original_area = calculate_area
        monkeypatch.setitem(sys.modules, "paddleseg.core.train", self.loop)
        monkeypatch.setattr(compat.metrics, "calculate_area", self.calculate_area)
        compat.patch_train_loop()
        assert self.calls == 0  # processes may still be forked

    def loss_computation(self):
        return [paddle.ones([2]).mean()]

    def calculate_area(self, *args, **options):
        self.calls += 1
        return self.original_area(*args, **options)

    def areas(self, **options):
        label = paddle.to_tensor([[[0, 0, 1], [1, 2, 255]]])
        pred = paddle.to_tensor([[[[0, 1, 1], [2, 2, 0]]]])
        return compat.metrics.calculate_area(pred, label, 3, ignore_index=255, **options)


def train_by_index(loss_list):  # as PaddleSeg 2.8.0
    return [loss.numpy()[0] for loss in loss_list] + [loss_list[0].numpy()[0]]


def train_by_value(loss_list):  # as later releases
    return [float(loss) for loss in loss_list]


def failing_areas(pred, label, num_classes, ignore_index=255, use_multilabel=False):
    if use_multilabel:
        return "labels of several classes"
    return (paddle.concat([(pred == i).sum() for i in range(num_classes)]),) * 3


def working_areas(pred, label, num_classes, ignore_index=255, use_multilabel=False):
    return "several" if use_multilabel else "one", pred, label


def test_a_train_loop_that_fails_is_patched(monkeypatch):
    host = Host(monkeypatch, train_by_index, failing_areas)
    assert train_by_index(host.loop.loss_computation()) == [1, 1]
    for options in ({}, {"use_multilabel": False}):
        assert [area.tolist() for area in host.areas(**options)] == [
            [1, 1, 1],
            [1, 2, 2],
            [2, 2, 1],
        ]
    assert host.calls == 1
    assert host.areas(use_multilabel=True) == "labels of several classes"


def test_a_train_loop_that_works_is_left_alone(monkeypatch):
    host = Host(monkeypatch, train_by_value, working_areas)
    assert host.loop.loss_computation is host.original
    assert host.areas()[0] == "one"
    assert host.areas(use_multilabel=True)[0] == "several"


REGISTRIES = """
import json, zlib  # zlib first, for Paddle 2.6
from paddleseg import datasets, models, transforms
from paddleseg.cvlibs import manager
names = ("MODELS", "BACKBONES", "DATASETS", "TRANSFORMS", "LOSSES", "OPTIMIZERS")
found = {name: getattr(manager, name).components_dict for name in names}
before = {name: dict(components) for name, components in found.items()}
import paddleseg_segformer.compat_run
print(json.dumps([
    f"{name}.{key}" for name, components in found.items() for key in components
    if components[key] is not before[name].get(key)
]))
"""

MIT = [f"BACKBONES.MixVisionTransformer{suffix}" for suffix in ("", *(f"_B{i}" for i in range(6)))]
VIT = [f"BACKBONES.{name}" for name in manager.BACKBONES.components_dict if name[:4] == "ViT_"]
ANY_BANDS = ("PaddingByAspectRatio", "RandomAffine", "RandomBlur", "RandomDistort", "RandomNoise")
ANY_BANDS += ("RandomPaddingCrop", "RandomRotation", "Resize")
REGISTERED = {
    *("MODELS.DecoupledSegNet", "MODELS.ISANet", "MODELS.SFNet", "MODELS.SegFormer"),
    *("BACKBONES.VisionTransformer", *VIT, *MIT),
    *("DATASETS.ADE20K", "DATASETS.Dataset"),
    *("TRANSFORMS.Normalize", "TRANSFORMS.Padding", "TRANSFORMS.PhotometricDistortion"),
    *("TRANSFORMS.RandomCategoryCrop", "TRANSFORMS.ResizeToFit", "TRANSFORMS.ScalePadding"),
    *(f"TRANSFORMS.{name}" for name in ANY_BANDS),
    *("LOSSES.CrossEntropyLoss", "LOSSES.DistillCrossEntropyLoss", "LOSSES.RelaxBoundaryLoss"),
    *(f"LOSSES.{name}" for name in PADDLE_2_RESULTS),
}


@pytest.mark.integration
def test_all_other_components_are_left_alone():
    run = subprocess.run([sys.executable, "-c", REGISTRIES], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert set(json.loads(run.stdout.splitlines()[-1])) == REGISTERED
