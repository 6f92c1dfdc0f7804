"""The command-line tools as a user runs them, on a few synthetic scenes."""

import json
import os
import re
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image
from run_tools import CONFIG, ROOT, cpu_options, run_tool, tool_command

from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.weights import read_saved_dict


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=6, val=3, size=(96, 96))
    return root


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    """The output folder and log of a training run of four iterations, saved every two."""
    save_dir = tmp_path_factory.mktemp("run")
    done = run_tool(
        *("train", "--config", CONFIG, "--save_dir", save_dir, "--iters", 4, "--batch_size", 2),
        *("--save_interval", 2, "--log_iters", 1, "--do_eval", "--use_vdl", "--use_ema"),
        *cpu_options(scenes),
    )
    assert done.returncode == 0, done.stderr
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


def test_resumed_run_equals_an_uninterrupted_run(scenes, tmp_path):
    """Weights, optimizer moments and EMA, without dropout and stochastic depth."""

    def train(save_dir, *arguments):
        done = run_tool(
            *("train", "--config", CONFIG, "--save_dir", tmp_path / save_dir, "--iters", 4),
            *("--batch_size", 2, "--save_interval", 2, "--use_ema", *arguments),
            *cpu_options(scenes, "model.dropout=0.0", "model.backbone.drop_path_rate=0.0"),
        )
        assert done.returncode == 0, done.stderr
        return tmp_path / save_dir / "iter_4"

    uninterrupted = train("uninterrupted")
    resumed = train("resumed", "--resume_model", tmp_path / "uninterrupted/iter_2")
    for name in ("model.pdparams", "ema_model.pdparams", "model.pdopt"):
        expected, actual = (read_saved_dict(folder / name) for folder in (uninterrupted, resumed))
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(actual[key], value, err_msg=key)


def test_checkpoints_of_an_earlier_run_are_kept(scenes, tmp_path):
    (tmp_path / "iter_900").mkdir()
    done = run_tool(
        *("train", "--config", CONFIG, "--save_dir", tmp_path, "--iters", 3, "--batch_size", 1),
        *("--save_interval", 1, "--keep_checkpoint_max", 2, *cpu_options(scenes)),
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("iter_*")} == {"iter_2", "iter_3", "iter_900"}


def test_termination_saves_and_exits_143(scenes, tmp_path):
    process = subprocess.Popen(
        tool_command(
            *("train", "--config", CONFIG, "--save_dir", tmp_path, "--batch_size", 2),
            *("--log_iters", 1, *cpu_options(scenes)),
        ),
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    for line in process.stdout:
        if "[TRAIN]" in line:
            process.send_signal(signal.SIGTERM)
            break
    log = process.communicate(timeout=300)[0]
    assert process.returncode == 143
    iteration = re.search(r"saved at iteration (\d+)", log).group(1)
    assert (tmp_path / f"iter_{iteration}/model.pdopt").is_file()


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
    command = [sys.executable, "-c", TERMINATED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
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
def test_evaluation(run, scenes, description, flags):
    model = run[0] / "best_model/model.pdparams"
    done = run_tool("val", "--config", CONFIG, "--model_path", model, *flags, *cpu_options(scenes))
    assert done.returncode == 0, done.stderr
    assert f"[EVAL] {description}\n" in done.stdout
    assert re.search(r"#Images: 3 mIoU: 0\.\d{4} Acc: 0\.\d{4}", done.stdout)
    assert re.search(r"^sky +\d\.\d{4} \d\.\d{4} +\d+\.\d\d%$", done.stdout, re.MULTILINE)


def test_two_processes_evaluate_like_one(run, scenes, tmp_path):
    """On three images, which two processes cannot share evenly: bit-identical metrics."""
    model = run[0] / "best_model/model.pdparams"
    metrics = []
    for launcher in ([], ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]):
        file = tmp_path / f"{len(metrics)}.json"
        arguments = [
            "--config",
            CONFIG,
            "--model_path",
            model,
            "--json",
            file,
            *cpu_options(scenes),
        ]
        done = subprocess.run(
            [sys.executable, *launcher, "tools/val.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PADDLE_LOG_DIR": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        metrics.append(json.loads(file.read_text()))
    assert metrics[0] == metrics[1]
    assert metrics[0]["images"] == 3 and len(metrics[0]["classes"]) == 150


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
    config.write_text(f"_base_: {CONFIG}\n{PAPER_TRANSFORMS}")

    def train(workers, seed=1):
        save_dir = tmp_path / f"{workers}-{seed}-{len(list(tmp_path.iterdir()))}"
        done = run_tool(
            *("train", "--config", config, "--save_dir", save_dir, "--iters", 20),
            *("--batch_size", 2, "--log_iters", 1, "--seed", seed, "--num_workers", workers),
            *cpu_options(scenes),
        )
        assert done.returncode == 0, done.stderr
        return losses(done.stdout), read_saved_dict(save_dir / "iter_20/model.pdparams")

    expected_losses, expected_weights = train(0)
    assert len(expected_losses) == 20
    for workers in (0, 2):
        actual_losses, actual_weights = train(workers)
        assert actual_losses == expected_losses
        for name, value in expected_weights.items():
            np.testing.assert_array_equal(actual_weights[name], value, err_msg=name)
    assert train(0, seed=2)[0] != expected_losses


def test_prediction(run, scenes, tmp_path):
    done = run_tool(
        *("predict", "--config", CONFIG, "--model_path", run[0] / "best_model/model.pdparams"),
        *("--image_path", scenes / "images", "--save_dir", tmp_path, *cpu_options(scenes)),
    )
    assert done.returncode == 0, done.stderr
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
    model = run[0] / "best_model/model.pdparams"
    paths = ("--image_path", tmp_path / "list.txt", "--save_dir", tmp_path / "out")
    done = run_tool(
        "predict", "--config", CONFIG, "--model_path", model, *paths, *cpu_options(scenes)
    )
    assert done.returncode == 0, done.stderr
    assert image.read_bytes() == before
    written = {path.relative_to(tmp_path / "out").parts[0] for path in tmp_path.rglob("*.png")}
    assert written == {"added_prediction", "pseudo_color_prediction", "label_map"}


def test_paddleseg_model_with_our_backbone(scenes, tmp_path):
    """It trains, and its checkpoint loads; another model's config with it is an error."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"_base_: {CONFIG}\n"
        "model: {_inherited_: false, type: FCN, num_classes: 150, backbone_indices: [3],\n"
        "  channels: 8, backbone: {type: MixVisionTransformer_B0, in_channels: 3}}\n"
    )
    done = run_tool(
        *("train", "--config", config, "--save_dir", tmp_path, "--iters", 1, "--batch_size", 2),
        *cpu_options(scenes, "optimizer.custom_cfg=null"),
    )
    assert done.returncode == 0, done.stderr
    model = tmp_path / "iter_1/model.pdparams"
    done = run_tool("val", "--config", config, "--model_path", model, *cpu_options(scenes))
    assert done.returncode == 0, done.stderr
    done = run_tool("val", "--config", CONFIG, "--model_path", model, *cpu_options(scenes))
    assert done.returncode == 2 and str(model) in done.stderr


INVALID = {
    "no config": (("--config", "nowhere.yaml"), "nowhere.yaml"),
    "no data": (("--config", CONFIG, "--opts", "train_dataset.dataset_root=absent"), "absent"),
    "no checkpoint": (("--config", CONFIG, "--resume_model", "absent/iter_9"), "absent/iter_9"),
    "no GPU": (("--config", CONFIG, "--device", "gpu"), "--device gpu"),
    "half precision": (("--config", CONFIG, "--precision", "fp16"), "--precision fp16"),
    "no steps": (("--config", CONFIG, "--save_interval", "0"), "--save_interval"),
    "wrong type": (("--config", CONFIG, "--opts", "iters=many"), "iters must be"),
    "bad option": (("--config", CONFIG, "--opts", "iters"), "--opts iters"),
    "no such flag": (("--config", CONFIG, "--itres", "3"), "--itres"),
    "a flag of PaddleSeg": (
        ("--config", CONFIG, "--repeats=2"),
        "--repeats is a PaddleSeg-only flag: ",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_input_is_one_sentence_and_exit_2(case, scenes, tmp_path):
    arguments, culprit = INVALID[case]
    arguments = ["--device", "cpu", "--save_dir", tmp_path / "out", *arguments]
    if "--opts" not in arguments:
        arguments += cpu_options(scenes)[2:]
    done = run_tool("train", *arguments)
    assert done.returncode == 2, done.stderr
    assert culprit in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pd*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named(workers, tmp_path):
    write_scenes(tmp_path, train=2, val=1, size=(96, 96))
    broken = tmp_path / "images/training/scene_train_00000002.jpg"
    broken.write_bytes(b"\xff\xd8 not a JPEG")
    done = run_tool(
        *("train", "--config", CONFIG, "--save_dir", tmp_path / "out", "--batch_size", 2),
        *("--num_workers", workers, *cpu_options(tmp_path)),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert str(broken) in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.pd*"))


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
    text = (ROOT / "configs/segformer_mit-b0_camvid.yaml").read_text()
    text = text.replace("data/camvid_small", str(root)).replace("classes: 11", "classes: 2")
    text = text.replace("_base_/", f"{ROOT}/configs/_base_/")
    config = tmp_path / "config.yaml"
    config.write_text(text)
    steps += [("check_dataset", "--config", config)]
    options = ("--iters", 1, "--batch_size", 1, "--save_dir", tmp_path / "run", "--device", "cpu")
    steps += [("train", "--config", config, "--freeze_backbone", *options)]
    for step in steps:
        done = run_tool(*step)
        assert done.returncode == 0, done.stderr
    assert "Frozen: the backbone" in done.stdout
    assert json.loads((tmp_path / "run/iter_1/manifest.json").read_text())["classes"] == [
        "dark",
        "light",
    ]
    for step in steps[:2]:
        done = run_tool(*step)
        assert done.returncode == 2 and "--force" in done.stderr and "Traceback" not in done.stderr


def test_paddle_2_is_refused():
    code = "import paddle, runpy; paddle.__version__ = '2.6.2'; runpy.run_path('tools/train.py', "
    command = [sys.executable, "-c", code + "run_name='__main__')", "--config", "none.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: PaddlePaddle 2.6.2: is too old; install")


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


def test_old_flag_names_are_aliases():
    done = run_tool("train", "--config", CONFIG, "--accumulate", 0)
    assert done.returncode == 2 and "--grad_accum_steps/--accumulate: 0 is below 1" in done.stderr
    done = run_tool("predict", "--runtime", "absent", "--model_path", "a", "--image_path", "b")
    assert done.returncode == 2 and "--backend/--runtime: invalid choice" in done.stderr
    done = run_tool("masks_from_colours", "--help")
    assert done.returncode == 0 and "masks" in done.stdout


def test_help_shows_aliases_and_defaults():
    done = run_tool("train", "--help")
    assert "  --grad_accum_steps, --accumulate N\n" in done.stdout
    assert "(default: 0 on CPU, up to 8 per" in done.stdout and "(default: output)" in done.stdout
    assert "(default: None)" not in done.stdout and "==SUPPRESS==" not in done.stdout
