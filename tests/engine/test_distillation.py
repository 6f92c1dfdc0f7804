"""Distillation: the loss, its gradient, and training runs with a teacher."""

import copy
import json

import numpy as np
import paddle
import pytest
import yaml
from paddleseg.models import DiceLoss
from small_models import SMALLEST, save, smallest_model
from training_runs import assert_same_weights, run, tiny_config, with_teacher

from paddleseg_segformer import CrossEntropyLoss, MixVisionTransformer, SegFormer
from paddleseg_segformer.engine.distillation import Distillation
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.ops import resize_bilinear

CLASSES = 5


class Fixed(paddle.nn.Layer):
    """A teacher that always returns the same logits."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, x):
        return [self.logits]


def softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature, weight", [(1.0, 1.0), (2.5, 0.3)])
def test_the_loss_and_its_gradient(temperature, weight):
    """Of each position of the logits, weighted by its 4 x 4 valid pixels."""
    rng = np.random.default_rng(0)
    student, teacher = 3 * rng.normal(size=[2, 2, CLASSES, 6, 8])
    label = rng.integers(0, CLASSES, [2, 24, 32])
    label[0, :10, :7] = label[1, 5, 9] = 255
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    divergence = (p * np.log(p / q)).sum(axis=1)
    valid = (label != 255).reshape([2, 6, 4, 8, 4]).sum(axis=(2, 4))
    factor = weight * temperature**2 / (label != 255).sum()
    expected = factor * (divergence * valid).sum()
    gradient = factor * valid[:, None] * (q - p) / temperature

    logits = paddle.to_tensor(student, stop_gradient=False)
    distillation = Distillation(Fixed(paddle.to_tensor(teacher)), 255, weight, temperature)
    loss = distillation(logits, None, paddle.to_tensor(label))
    loss.backward()
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=1e-6, atol=1e-12)
    scaled = distillation(logits.astype("float32"), None, paddle.to_tensor(label), scale=3.0)
    assert float(scaled) == pytest.approx(3 * expected, rel=1e-4)
    assert distillation.normalizer(paddle.to_tensor(label)) == (label != 255).sum()


def test_logits_of_another_size_are_resized():
    student, teacher = paddle.randn([1, CLASSES, 16, 16]), paddle.randn([1, CLASSES, 64, 64])
    label = paddle.zeros([1, 64, 64], "int64")
    small = Fixed(resize_bilinear(teacher, [16, 16]))
    found, expected = (Distillation(t)(student, None, label) for t in (Fixed(teacher), small))
    assert float(found) == pytest.approx(float(expected), rel=1e-5) and float(found) > 0.1
    assert float(Distillation(Fixed(student))(student, None, label)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_a_batch_without_a_valid_pixel_has_no_loss(dtype):
    logits = paddle.randn([1, CLASSES, 4, 4])
    label = paddle.full([1, 16, 16], 255, dtype)
    assert float(Distillation(Fixed(paddle.randn(logits.shape)))(logits, None, label)) == 0


def batch(size=4):
    rng = np.random.default_rng(1)
    label = rng.integers(0, CLASSES, [size, 64, 64])
    for i, image in enumerate(label):
        image[: 12 * i] = 255
    images = rng.normal(size=[size, 3, 64, 64]).astype("float32")
    return {"img": paddle.to_tensor(images), "label": paddle.to_tensor(label.astype("uint8"))}


def train_step(distillation=None, loss=None, grad_accum_steps=1, align_corners=False):
    paddle.seed(0)
    backbone = MixVisionTransformer(**SMALLEST, drop_path_rate=0.0)
    model = SegFormer(CLASSES, backbone, 8, dropout=0.0, align_corners=align_corners)
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.BatchNorm2D):
            layer._use_global_stats = True
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    losses = {"types": [loss or CrossEntropyLoss()], "coef": [1.0]}
    options = TrainOptions(grad_accum_steps=grad_accum_steps)
    return TrainStep(model, losses, optimizer, options, copy.deepcopy(model), distillation)


def test_micro_batches_give_the_loss_of_the_whole_batch():
    """Also of images with different numbers of ignored pixels."""
    arrays, distillation = batch(), Distillation(smallest_model())
    parts = [{name: array[i : i + 1] for name, array in arrays.items()} for i in range(4)]
    whole = train_step(distillation)([arrays], 1)
    found = train_step(distillation, grad_accum_steps=4)(parts, 1)
    assert len(whole.losses) == 2 and whole.losses[1] > 0.1
    np.testing.assert_allclose(found.losses, whole.losses, rtol=1e-5)
    assert found.norm == pytest.approx(whole.norm, rel=1e-4)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("loss", [CrossEntropyLoss, DiceLoss])
def test_the_teacher_adds_a_loss_and_leaves_the_others(loss, align_corners):
    options = {"loss": loss(), "align_corners": align_corners}
    plain, teacher = train_step(**options), smallest_model()
    before = {name: value.numpy() for name, value in teacher.state_dict().items()}
    distilled, zero = (train_step(Distillation(teacher, 255, w), **options) for w in (2.0, 0.0))
    model, arrays = copy.deepcopy(plain.model), batch()
    with paddle.no_grad():
        student = model(arrays["img"], resize_logits=False)[0]
        expected = 2 * Distillation(teacher)(student, arrays["img"], arrays["label"])
    results = [step([arrays], 1) for step in (plain, distilled, zero)]
    np.testing.assert_allclose(results[1].losses, [*results[0].losses, float(expected)], rtol=1e-5)
    assert results[1].norm != pytest.approx(results[0].norm, rel=1e-2)
    assert results[2].losses[1] == 0 and results[2].norm == pytest.approx(results[0].norm, rel=1e-6)
    for name, value in zero.model.state_dict().items():
        expected = plain.model.state_dict()[name].numpy()
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=name)
    for name, value in teacher.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name])
        assert teacher.training is False


@pytest.mark.integration
def test_runs_with_a_teacher(scenes, tmp_path):
    """Resuming equals the uninterrupted run; weight 0 equals a run without a teacher."""
    transforms, distillation = with_teacher(tmp_path)
    folders = {name: tmp_path / name for name in ("whole", "resumed", "zero", "plain")}
    config = tiny_config(scenes, transforms, distillation, iters=4)
    run(config, folders["whole"])
    run(config, folders["resumed"], resume_model=str(folders["whole"] / "iter_2"))
    run(tiny_config(scenes, transforms, iters=4), folders["plain"])
    weight = distillation.replace("}", ", weight: 0}")
    run(tiny_config(scenes, transforms, weight, iters=4), folders["zero"])
    for one, other in (("whole", "resumed"), ("plain", "zero")):
        files = [folders[name] / "iter_4/model.pdparams" for name in (one, other)]
        assert_same_weights(*files)
    losses = {name: read_lines(folder) for name, folder in folders.items()}
    totals = {name: [line["loss"] for line in lines] for name, lines in losses.items()}
    assert totals["resumed"] == totals["whole"][2:] and totals["zero"] == totals["plain"]
    for line in losses["whole"]:
        assert line["loss"] == pytest.approx(line["loss_0"] + line["loss_1"]) and line["loss_1"] > 0
    assert losses["whole"][-1]["loss_0"] != totals["plain"][-1]
    manifest = json.loads((folders["whole"] / "iter_4/manifest.json").read_text())
    teacher = str(tmp_path / "teacher.pdparams")
    assert manifest["config"]["distillation"] == {"teacher": teacher}


def teacher_run(workspace, classes=150, **changes):
    """A teacher's checkpoint with the manifest of a training run."""
    folder = workspace / "teacher"
    folder.mkdir(exist_ok=True)
    model = {"type": "SegFormer", "embedding_dim": 32, "num_classes": classes}
    model["backbone"] = {"type": "MixVisionTransformer", **SMALLEST, "in_channels": 3}
    model["backbone"].update(changes.pop("backbone", {}))
    normalize = {"type": "Normalize", **changes.pop("normalize", {})}
    names = [f"class {index}" for index in range(classes)]
    manifest = {"classes": names, "palette": [[0, 0, 0]] * classes}
    manifest["config"] = {"model": model, "val_dataset": {"transforms": [normalize]}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    save(smallest_model(classes), folder / "model.pdparams")
    return folder


REFUSED = {
    "classes": ({"classes": 149}, r"has 149 classes and train_dataset 150; they must be the same"),
    "normalization": (
        {"normalize": {"mean": [0.5, 0.5, 0.4]}},
        r"takes images normalized with mean \[0.5, 0.5, 0.4\], std \[0.5, 0.5, 0.5\], and "
        r"train_dataset's have mean \[0.5, 0.5, 0.5\], std .*; make its Normalize that of the",
    ),
    "bands": ({"backbone": {"in_channels": 4}}, "is for 4-band images, and train_dataset has 3-b"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_teacher_of_other_images_or_classes_is_refused(case, scenes, tmp_path):
    changes, message = REFUSED[case]
    folder = teacher_run(tmp_path, **changes)
    config = tiny_config(scenes, f"distillation={{teacher: {folder}}}", iters=1)
    with pytest.raises(InputError, match=f"^distillation.teacher: {folder} {message}"):
        run(config, tmp_path / "run")


def test_weights_with_an_assumed_normalization_need_a_config(scenes, tmp_path):
    save(smallest_model(150), tmp_path / "teacher.pdparams")
    section = f"distillation={{teacher: {tmp_path}/teacher.pdparams}}"
    message = r"is assumed to take images normalized with mean \[0.485, .* as distillation.config\."
    with pytest.raises(InputError, match=message):
        run(tiny_config(scenes, section, iters=1), tmp_path / "run")


def test_an_exported_graph_is_no_teacher(scenes, tmp_path):
    deploy = {"transforms": [{"type": "Normalize"}], "output_op": "none", "input_shape": [1]}
    tree = {"Deploy": deploy, "classes": ["a"] * 150, "palette": [[0, 0, 0]] * 150}
    (tmp_path / "deploy.yaml").write_text(yaml.safe_dump(tree))
    config = tiny_config(scenes, f"distillation={{teacher: {tmp_path}}}", iters=1)
    with pytest.raises(InputError, match="is an exported graph; give the checkpoint that it was"):
        run(config, tmp_path / "run")


def test_a_missing_teacher_is_an_error(scenes, tmp_path):
    config = tiny_config(scenes, f"distillation={{teacher: {tmp_path}/nowhere}}", iters=1)
    with pytest.raises(InputError, match=f"^{tmp_path}/nowhere: "):
        run(config, tmp_path / "run")


@pytest.mark.integration
def test_other_class_names_are_a_warning_and_a_config_may_be_given(scenes, tmp_path, caplog):
    folder = teacher_run(tmp_path)
    run(tiny_config(scenes, f"distillation={{teacher: {folder}}}", iters=1), tmp_path / "run")
    assert f"{folder} calls class 0 class 0, and train_dataset wall: check that" in caplog.text
    caplog.clear()
    config = tiny_config(scenes, "model.embedding_dim=32", iters=1)
    path = tmp_path / "teacher.yaml"
    path.write_text(yaml.safe_dump(config.dic))
    weights = folder / "model.pdparams"
    section = f"distillation={{teacher: {weights}, config: {path}}}"
    imagenet, _ = with_teacher(tmp_path)
    run(tiny_config(scenes, section, imagenet, iters=1), tmp_path / "other")
    assert "check that" not in caplog.text
