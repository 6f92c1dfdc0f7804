"""The command-line tools as a user runs them, on a few drawn scenes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.weights import read_saved_dict

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quickstart.yaml"


def tool(name, *arguments):
    """Run ``tools/<name>.py`` to its end; returns the completed process, output as text."""
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, cwd=ROOT)


def command(name, *arguments):
    folder = "tools" if Path(ROOT, "tools", f"{name}.py").exists() else "benchmarks"
    return [sys.executable, f"{folder}/{name}.py", *map(str, arguments)]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=6, val=3, size=(96, 96))
    return root


def options(scenes, *more):
    roots = [f"{split}_dataset.dataset_root={scenes}" for split in ("train", "val")]
    return ["--device", "cpu", "--opts", *roots, *more]


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    """A run of four iterations, saved every two."""
    save_dir = tmp_path_factory.mktemp("run")
    done = tool(
        *("train", "--config", CONFIG, "--save_dir", save_dir, "--iters", 4, "--batch_size", 2),
        *("--save_interval", 2, "--log_iters", 1, "--do_eval", "--use_vdl", "--use_ema"),
        *options(scenes),
    )
    assert done.returncode == 0, done.stderr
    return save_dir, done.stdout


def losses(log):
    found = re.findall(r"iter: (\d+)/\d+, loss: ([\d.]+)", log)
    return {int(iteration): float(loss) for iteration, loss in found}


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


def test_resumed_run_is_the_run_that_never_stopped(scenes, tmp_path):
    """Weights, moments and averages, with everything off that a resume does not restore yet."""

    def train(save_dir, *more):
        done = tool(
            *("train", "--config", CONFIG, "--save_dir", tmp_path / save_dir, "--iters", 4),
            *("--batch_size", 2, "--save_interval", 2, "--use_ema", *more),
            *options(scenes, "model.dropout=0.0", "model.backbone.drop_path_rate=0.0"),
        )
        assert done.returncode == 0, done.stderr
        return tmp_path / save_dir / "iter_4"

    whole = train("whole")
    resumed = train("resumed", "--resume_model", tmp_path / "whole/iter_2")
    for name in ("model.pdparams", "ema_model.pdparams", "model.pdopt"):
        expected, actual = (read_saved_dict(folder / name) for folder in (whole, resumed))
        assert actual.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_array_equal(actual[key], value, err_msg=key)


def test_old_checkpoints_of_another_run_are_left_alone(scenes, tmp_path):
    (tmp_path / "iter_900").mkdir()
    done = tool(
        *("train", "--config", CONFIG, "--save_dir", tmp_path, "--iters", 3, "--batch_size", 1),
        *("--save_interval", 1, "--keep_checkpoint_max", 2, *options(scenes)),
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.glob("iter_*")} == {"iter_2", "iter_3", "iter_900"}


def test_termination_saves_and_exits_143(scenes, tmp_path):
    process = subprocess.Popen(
        command(
            *("train", "--config", CONFIG, "--save_dir", tmp_path, "--batch_size", 2),
            *("--log_iters", 1, *options(scenes)),
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
        print("tidied up")
common.run(main)
"""


def test_termination_lets_a_tool_tidy_up():
    command = [sys.executable, "-c", TERMINATED]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (143, "tidied up\n")
    assert "Traceback" not in done.stderr


VIEWS = {
    "whole, at scale 1, not mirrored.": ["--num_workers", 0],
    "whole, at scale 0.5, 1, as it is and mirrored left to right; the mean softmax of 4 views": [
        *("--aug_eval", "--scales", 0.5, 1.0, "--flip_horizontal")
    ],
    "in windows of 64 by 64 pixels, 48 by 48 apart, at scale 1, not mirrored.": [
        *("--is_slide", "--crop_size", 64, 64, "--stride", 48, 48)
    ],
}


@pytest.mark.parametrize("told, views", VIEWS.items(), ids=["whole", "scales", "windows"])
def test_evaluation(run, scenes, told, views):
    model = run[0] / "best_model/model.pdparams"
    done = tool("val", "--config", CONFIG, "--model_path", model, *views, *options(scenes))
    assert done.returncode == 0, done.stderr
    assert f"[EVAL] Each image is seen {told}" in done.stdout
    assert re.search(r"#Images: 3 mIoU: 0\.\d{4} Acc: 0\.\d{4}", done.stdout)
    assert re.search(r"^sky +\d\.\d{4} \d\.\d{4} +\d+\.\d\d%$", done.stdout, re.MULTILINE)


def test_two_processes_evaluate_like_one(run, scenes, tmp_path):
    """Three images, which two processes cannot share evenly: the same figures to the last digit."""
    model = run[0] / "best_model/model.pdparams"
    figures = []
    for launcher in ([], ["-m", "paddle.distributed.launch", "--nproc_per_node", "2"]):
        file = tmp_path / f"{len(figures)}.json"
        arguments = ["--config", CONFIG, "--model_path", model, "--json", file, *options(scenes)]
        done = subprocess.run(
            [sys.executable, *launcher, "tools/val.py", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PADDLE_LOG_DIR": str(tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        figures.append(json.loads(file.read_text()))
    assert figures[0] == figures[1]
    assert figures[0]["images"] == 3 and len(figures[0]["classes"]) == 150


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
        done = tool(
            *("train", "--config", config, "--save_dir", save_dir, "--iters", 20),
            *("--batch_size", 2, "--log_iters", 1, "--seed", seed, "--num_workers", workers),
            *options(scenes),
        )
        assert done.returncode == 0, done.stderr
        return losses(done.stdout), read_saved_dict(save_dir / "iter_20/model.pdparams")

    first, weights = train(0)
    assert len(first) == 20
    for workers in (0, 2):
        again, same = train(workers)
        assert again == first
        for name, value in weights.items():
            np.testing.assert_array_equal(same[name], value, err_msg=name)
    assert train(0, seed=2)[0] != first


def test_prediction(run, scenes, tmp_path):
    done = tool(
        *("predict", "--config", CONFIG, "--model_path", run[0] / "best_model/model.pdparams"),
        *("--image_path", scenes / "images", "--save_dir", tmp_path, *options(scenes)),
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


def test_prediction_stays_in_its_folder(run, scenes, tmp_path):
    """A list of absolute paths: nothing is written beside, let alone over, the images."""
    image = scenes / "images/validation/scene_val_00000001.jpg"
    before = image.read_bytes()
    (tmp_path / "list.txt").write_text(f"{image}\n")
    model = run[0] / "best_model/model.pdparams"
    paths = ("--image_path", tmp_path / "list.txt", "--save_dir", tmp_path / "out")
    done = tool("predict", "--config", CONFIG, "--model_path", model, *paths, *options(scenes))
    assert done.returncode == 0, done.stderr
    assert image.read_bytes() == before
    written = {path.relative_to(tmp_path / "out").parts[0] for path in tmp_path.rglob("*.png")}
    assert written == {"added_prediction", "pseudo_color_prediction", "label_map"}


def test_foreign_model(scenes, tmp_path):
    """A PaddleSeg model of another kind, with our encoder, trains, and loads what it saved."""
    config = tmp_path / "config.yaml"
    config.write_text(
        f"_base_: {CONFIG}\n"
        "model: {_inherited_: false, type: FCN, num_classes: 150, backbone_indices: [3],\n"
        "  channels: 8, backbone: {type: MixVisionTransformer_B0, in_channels: 3}}\n"
    )
    done = tool(
        *("train", "--config", config, "--save_dir", tmp_path, "--iters", 1, "--batch_size", 2),
        *options(scenes, "optimizer.custom_cfg=null"),
    )
    assert done.returncode == 0, done.stderr
    model = tmp_path / "iter_1/model.pdparams"
    done = tool("val", "--config", config, "--model_path", model, *options(scenes))
    assert done.returncode == 0, done.stderr
    wrong = tool("val", "--config", CONFIG, "--model_path", model, *options(scenes))
    assert wrong.returncode == 2 and str(model) in wrong.stderr


def test_foreign_models_data_can_be_timed(scenes, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"_base_: {CONFIG}\n"
        "model: {_inherited_: false, type: FCN, num_classes: 150, backbone_indices: [3],\n"
        "  channels: 8, backbone: {type: MixVisionTransformer_B0, in_channels: 3}}\n"
    )
    (tmp_path / "earlier.json").write_text("old")
    os.link(tmp_path / "earlier.json", tmp_path / "report.json")
    few = ("--samples", 2, "--rounds", 1, "--json", tmp_path / "report.json")
    more = options(scenes, "optimizer.custom_cfg=null")
    done = tool("benchmark", "data", "--config", config, *few, *more)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert row["images_per_second"] == pytest.approx(2 / row["seconds"])
    assert (tmp_path / "earlier.json").read_text() == "old"  # the new file has replaced it
    done = tool("benchmark", "train", "--config", config, *few, "--against", "paddleseg", *more)
    assert done.returncode == 2 and "model.embedding_dim: is missing" in done.stderr


DEVICE = """
import sys
sys.path.insert(0, "benchmarks")
import worker
class Fake:  # holds 100 bytes of a GPU before its run, and had more until then
    held, peak = 100, 900
    def __init__(self, spec): pass
    def eval(self): return lambda: None
    def synchronize(self): pass
    def held_memory(self):
        self.peak = 350  # from here on
        return self.held
    def peak_memory(self): return self.peak
worker.IMPLEMENTATIONS["ours"] = Fake
spec = dict(implementation="ours", job="eval", size=[32, 32], batch_size=1, classes=2)
sys.argv = ["worker.py", worker.json.dumps(spec)]
worker.main()
"""


def test_a_gpus_memory_is_counted_from_what_was_held(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DEVICE], input="go\n", capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"peak_memory": 250}


def test_plotted_models_have_their_own_names(tmp_path):
    """In whichever order some of them come; an SVG file has its texts as comments."""
    files = [tmp_path / f"{name}.json" for name in ("B3", "B1")]
    for file in files:
        rows = [{"name": "ours", "gmacs": 20.0}]
        file.write_text(json.dumps({"spec": {"backbone": file.stem}, "rows": rows}))
    done = tool("plot", "models", *files, "--output", tmp_path / "models.svg")
    assert done.returncode == 0, done.stderr
    drawn = (tmp_path / "models.svg").read_text()
    assert re.findall(r"<!-- (B\d) -->", drawn) == ["B1", "B3"]


BAD = {
    "no config": (("--config", "nowhere.yaml"), "nowhere.yaml"),
    "no data": (("--config", CONFIG, "--opts", "train_dataset.dataset_root=absent"), "absent"),
    "no checkpoint": (("--config", CONFIG, "--resume_model", "absent/iter_9"), "absent/iter_9"),
    "no GPU": (("--config", CONFIG, "--device", "gpu"), "--device gpu"),
    "half precision": (("--config", CONFIG, "--precision", "fp16"), "--precision fp16"),
    "no steps": (("--config", CONFIG, "--save_interval", "0"), "--save_interval"),
    "wrong type": (("--config", CONFIG, "--opts", "iters=many"), "iters must be"),
    "bad option": (("--config", CONFIG, "--opts", "iters"), "--opts iters"),
    "no such flag": (("--config", CONFIG, "--itres", "3"), "--itres"),
    "a flag of PaddleSeg": (("--config", CONFIG, "--repeats=2"), "--repeats is PaddleSeg's: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_2(case, scenes, tmp_path):
    arguments, culprit = BAD[case]
    arguments = ["--device", "cpu", "--save_dir", tmp_path / "out", *arguments]
    if "--opts" not in arguments:
        arguments += options(scenes)[2:]
    done = tool("train", *arguments)
    assert done.returncode == 2, done.stderr
    assert culprit in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.pd*"))


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named(workers, tmp_path):
    write_scenes(tmp_path, train=2, val=1, size=(96, 96))
    broken = tmp_path / "images/training/scene_train_00000002.jpg"
    broken.write_bytes(b"\xff\xd8 not a JPEG")
    done = tool(
        *("train", "--config", CONFIG, "--save_dir", tmp_path / "out", "--batch_size", 2),
        *("--num_workers", workers, *options(tmp_path)),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert str(broken) in done.stderr.splitlines()[-1]
    assert not list(tmp_path.rglob("*.pd*"))


def test_from_folders_of_pictures_to_a_trained_head(tmp_path):
    """Masks in colors, lists, a check and a run with a frozen backbone, as a user goes on."""
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
    more = ("--iters", 1, "--batch_size", 1, "--save_dir", tmp_path / "run", "--device", "cpu")
    steps += [("train", "--config", config, "--freeze_backbone", *more)]
    for step in steps:
        done = tool(*step)
        assert done.returncode == 0, done.stderr
    assert "Frozen: the backbone" in done.stdout
    assert json.loads((tmp_path / "run/iter_1/manifest.json").read_text())["classes"] == [
        "dark",
        "light",
    ]
    for step in steps[:2]:
        done = tool(*step)
        assert done.returncode == 2 and "--force" in done.stderr and "Traceback" not in done.stderr


def test_paddle_2_is_refused():
    tool = "import paddle, runpy; paddle.__version__ = '2.6.2'; runpy.run_path('tools/train.py', "
    command = [sys.executable, "-c", tool + "run_name='__main__')", "--config", "none.yaml"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("error: PaddlePaddle 2.6.2: is too old; install")
