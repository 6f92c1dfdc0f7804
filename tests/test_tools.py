"""The command-line tools as a user runs them, on a few synthetic scenes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from fork_server import python
from PIL import Image
from run_tools import ROOT, run_in_new_process, run_tool, tiny_config

from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.inference.backends import GRAPH_FILE
from paddleseg_segformer.weights import read_saved_dict

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=6, val=3, size=(96, 96))
    return root


@pytest.fixture(scope="module")
def config(scenes):
    return tiny_config(scenes, scenes)


def succeeds(name, *arguments, start=run_tool):
    done = start(name, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """The output folder and log of a training run of four iterations, saved every two."""
    save_dir = tmp_path_factory.mktemp("run")
    done = succeeds(
        *("train", "--config", config, "--save_dir", save_dir, "--iters", 4, "--device", "cpu"),
        *("--save_interval", 2, "--log_iters", 1, "--do_eval", "--use_vdl", "--use_ema"),
        start=run_in_new_process,
    )
    return save_dir, done.stdout


def losses(log):
    """``{iteration: loss}``."""
    lines = re.findall(r"iter: (\d+)/\d+, loss: ([\d.]+)", log)
    return {int(iteration): float(loss) for iteration, loss in lines}


def test_training_logs_and_saves(run):
    save_dir, log = run
    assert losses(log).keys() == {1, 2, 3, 4}
    assert re.search(r"lr: [\d.e-]+, .*ips: [\d.]+ images/s \| ETA \d:\d\d:\d\d", log)
    saved = {str(path.relative_to(save_dir)) for path in save_dir.rglob("*.pd*")}
    assert saved == {
        *(f"iter_{n}/{f}" for n in (2, 4) for f in ("model.pdparams", "model.pdopt")),
        *(f"iter_{n}/ema_model.pdparams" for n in (2, 4)),
        "best_model/model.pdparams",
        "ema_best_model/ema_model.pdparams",
    }
    assert any("vdlrecords" in path.name for path in save_dir.iterdir())


def test_checkpoints_of_an_earlier_run_are_kept(config, tmp_path):
    (tmp_path / "iter_900").mkdir()
    succeeds(
        *("train", "--config", config, "--save_dir", tmp_path, "--iters", 3, "--device", "cpu"),
        *("--save_interval", 1, "--keep_checkpoint_max", 2),
    )
    assert {path.name for path in tmp_path.glob("iter_*")} == {"iter_2", "iter_3", "iter_900"}


TERMINATED = """
import os, signal, time
from paddleseg_segformer.cli import common
def main():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    finally:
        print("cleaned up")
common.run(main)
"""


def test_termination_runs_finally_blocks():
    done = python("-c", TERMINATED)
    assert (done.returncode, done.stdout) == (143, "cleaned up\n")
    assert "Traceback" not in done.stderr


TEST_FLAGS = {
    "single scale, no flip, whole image": ["--num_workers", 0],
    "2 scales (0.5, 1) + horizontal flip, mean softmax of 4 views, whole image": [
        *("--aug_eval", "--scales", 0.5, 1.0, "--flip_horizontal")
    ],
    "single scale, no flip, sliding window 64x64, stride 48x48": [
        *("--is_slide", "--crop_size", 64, 64, "--stride", 48, 48)
    ],
}


@pytest.mark.parametrize(
    "description, flags", TEST_FLAGS.items(), ids=["single scale", "multi-scale", "sliding window"]
)
def test_evaluation(run, config, description, flags):
    model = run[0] / "best_model/model.pdparams"
    options = ("--config", config, "--model_path", model, "--device", "cpu")
    done = succeeds("val", *options, *flags)
    assert f"[EVAL] {description}\n" in done.stdout
    assert re.search(r"#Images: 3 mIoU: 0\.\d{4} Acc: 0\.\d{4}", done.stdout)
    assert re.search(r"^sky +\d\.\d{4} \d\.\d{4} +\d+\.\d\d%$", done.stdout, re.MULTILINE)


def test_two_processes_evaluate_like_one(run, config, tmp_path):
    """On three images, which two processes cannot share evenly: bit-identical metrics."""
    model = run[0] / "best_model/model.pdparams"
    options = ("--config", config, "--model_path", model, "--device", "cpu", "--json")
    succeeds("val", *options, tmp_path / "one.json", start=run_in_new_process)
    launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", 2, "tools/val.py"]
    done = subprocess.run(
        [sys.executable, *map(str, (*launch, *options, tmp_path / "two.json"))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PADDLE_LOG_DIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert one == two
    assert one["images"] == 3 and len(one["classes"]) == 150


PAPER_TRANSFORMS = """
train_dataset:
  transforms:
    - {type: ResizeToFit, target_size: [256, 96], ratio_range: [0.5, 2.0]}
    - {type: RandomCategoryCrop, crop_size: [96, 96]}
    - {type: RandomHorizontalFlip}
    - {type: PhotometricDistortion}
    - {type: Normalize, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}
    - {type: Padding, target_size: [96, 96], im_padding_value: 0, label_padding_value: 255}
"""


def test_seeded_runs_are_identical_for_any_number_of_workers(scenes, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(f"_base_: {tiny_config(tmp_path, scenes)}\n{PAPER_TRANSFORMS}")

    def train(workers, seed=1):
        save_dir = tmp_path / f"{workers}-{seed}-{len(list(tmp_path.iterdir()))}"
        done = succeeds(
            *("train", "--config", config, "--save_dir", save_dir, "--iters", 6),
            *("--device", "cpu", "--log_iters", 1, "--seed", seed, "--num_workers", workers),
        )
        return losses(done.stdout), read_saved_dict(save_dir / "iter_6/model.pdparams")

    expected_losses, expected_weights = train(0)
    assert len(expected_losses) == 6
    for workers in (0, 2):
        actual_losses, actual_weights = train(workers)
        assert actual_losses == expected_losses
        for name, value in expected_weights.items():
            np.testing.assert_array_equal(actual_weights[name], value, err_msg=name)
    assert train(0, seed=2)[0] != expected_losses


def test_prediction(run, scenes, tmp_path):
    """Without a config, which is in the checkpoint's manifest."""
    succeeds(
        *("predict", "--model_path", run[0] / "best_model", "--image_path", scenes / "images"),
        *("--save_dir", tmp_path, "--device", "cpu"),
        start=run_in_new_process,
    )
    name = "validation/scene_val_00000001.png"
    image = cv2.imread(str(scenes / "images" / name.replace("png", "jpg"))).astype(float)
    label_image = Image.open(tmp_path / "label_map" / name)
    assert label_image.mode == "P"
    labels = np.asarray(label_image)
    colors = cv2.imread(str(tmp_path / "pseudo_color_prediction" / name))
    overlay = cv2.imread(str(tmp_path / "added_prediction" / name))
    assert labels.shape == (96, 96) and labels.max() < 150
    np.testing.assert_allclose(overlay, (image + colors) / 2, atol=1)
    np.testing.assert_array_equal(np.asarray(label_image.convert("RGB")), colors[:, :, ::-1])
    assert len(list(tmp_path.rglob("*.png"))) == 9 * 3


def test_prediction_writes_only_to_save_dir(run, scenes, tmp_path):
    """With a list of absolute paths: the images must not be overwritten."""
    image = scenes / "images/validation/scene_val_00000001.jpg"
    before = image.read_bytes()
    (tmp_path / "list.txt").write_text(f"{image}\n")
    paths = ("--image_path", tmp_path / "list.txt", "--save_dir", tmp_path / "out")
    succeeds("predict", "--model_path", run[0] / "best_model", *paths, "--device", "cpu")
    assert image.read_bytes() == before
    written = {path.relative_to(tmp_path / "out").parts[0] for path in tmp_path.rglob("*.png")}
    assert written == {"added_prediction", "pseudo_color_prediction", "label_map"}


def test_paddleseg_model_with_our_backbone(config, tmp_path):
    """It trains, and its checkpoint loads; another model's config with it is an error."""
    other, model = tmp_path / "config.yaml", tmp_path / "iter_1/model.pdparams"
    other.write_text(
        f"_base_: {config}\n"
        "optimizer: {custom_cfg: null}\n"
        "model: {_inherited_: false, type: FCN, num_classes: 150, backbone_indices: [3],\n"
        "  channels: 8, backbone: {type: MixVisionTransformer_B0, in_channels: 3}}\n"
    )
    cpu = ("--device", "cpu")
    succeeds("train", "--config", other, "--save_dir", tmp_path, "--iters", 1, *cpu)
    succeeds("val", "--config", other, "--model_path", model, *cpu)
    done = run_tool("val", "--config", config, "--model_path", model, *cpu)
    assert done.returncode == 2 and str(model) in done.stderr


def test_custom_dataset_from_color_masks_to_a_trained_head(tmp_path):
    """Convert the masks, split the dataset, validate it and train with a frozen backbone."""
    root, random = tmp_path / "data", np.random.default_rng(0)
    for folder in ("images", "colored"):
        (root / folder).mkdir(parents=True)
    for i in range(4):
        image = random.integers(0, 256, [64, 64, 3], dtype="uint8")
        Image.fromarray(image).save(root / f"images/{i}.jpg")
        Image.fromarray((image > 127).astype("uint8")[:, :, 0] * 255).save(
            root / f"colored/{i}.png"
        )
    (root / "labels.txt").write_text("dark 0 0 0\nlight 255 255 255\n")
    steps = [("masks_from_colors", root, "colored", "masks")]
    steps += [("split_dataset_list", root, "images", "masks", "--split", 0.5, 0.5, 0)]
    text = (ROOT / "configs/segformer_mit-b0_custom_dataset.yaml").read_text()
    text = text.replace("data/mine", str(root)).replace("[128, 128]", "[64, 64]")
    text = text.replace("_base_/", f"{ROOT}/configs/_base_/").replace("[192, 144]", "[64, 64]")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    steps += [("check_dataset", "--config", config)]
    options = ("--iters", 1, "--batch_size", 1, "--save_dir", tmp_path / "run", "--device", "cpu")
    steps += [("train", "--config", config, "--freeze_backbone", *options)]
    for step in steps:
        done = succeeds(*step)
    assert "Frozen: the backbone" in done.stdout
    assert json.loads((tmp_path / "run/iter_1/manifest.json").read_text())["classes"] == [
        "dark",
        "light",
    ]
    for step in steps[:2]:
        done = run_tool(*step)
        assert done.returncode == 2 and "--force" in done.stderr and "Traceback" not in done.stderr


def test_the_readmes_commands_write_to_the_folders_that_it_names(config, tmp_path):
    """By the installed command, in another folder than the checkout's."""
    program = Path(sys.executable).with_name("segformer")
    if not program.exists():
        pytest.skip("needs the installed package: pip install -e .")
    train = ("train", "--config", config, "--do_eval", "--iters", 1, "--device", "cpu")
    done = subprocess.run(
        [program, *map(str, train)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    write_scenes(tmp_path / "photos", train=1, val=1, size=(96, 96))
    (tmp_path / "photos/images/training").rename(tmp_path / "one")
    photo = next((tmp_path / "one").iterdir())
    model, weights = "output/best_model", "output/best_model/model.pdparams"
    for command in (
        ("val", "--config", config, "--model_path", weights, "--aug_eval", "--report", "report/"),
        ("predict", "--model_path", model, "--image_path", "one/"),
        ("export", "--model_path", model, "--image_path", photo),
        ("make_scenes", "--train", 1, "--val", 1),
    ):
        done = python("-m", "paddleseg_segformer", *command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "output").iterdir()}
    assert {"best_model", "iter_1", "result", "inference_model"} <= names
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    kinds = ("added_prediction", "pseudo_color_prediction", "label_map")
    expected = {f"output/result/{kind}/{photo.stem}.png" for kind in kinds}
    files = (GRAPH_FILE, "model.pdiparams", "deploy.yaml")
    expected |= {f"output/inference_model/{name}" for name in files}
    expected |= {"report/report.html", "data/scenes/images/training/scene_train_00000001.jpg"}
    expected |= {weights, "output/iter_1/model.pdopt"}
    assert expected <= found


LIGHT = """
import sys
import paddleseg_segformer.cli.train
heavy = "flask jinja2 matplotlib onnx onnxruntime openvino paddle2onnx torch waitress".split()
assert not [name for name in sys.modules if name.split(".")[0] in heavy]
assert not [name for name in sys.modules if name.startswith("paddleseg_segformer.deploy")]
"""


def test_training_does_not_import_deployment():
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_help_shows_aliases_and_defaults():
    done = run_tool("train", "--help")
    assert "  --grad_accum_steps, --accumulate N\n" in done.stdout
    assert "(default: 0 on" in done.stdout and "(default: output)" in done.stdout
    assert "(default: None)" not in done.stdout and "==SUPPRESS==" not in done.stdout
