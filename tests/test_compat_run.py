"""PaddleSeg's own training and evaluation with this package's components."""

import re
import subprocess
import sys

import pytest
import yaml
from fork_server import python

from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import validate

pytestmark = pytest.mark.integration

# A short version of PaddleSeg's tools/train.py.
SCRIPT = """
import sys
import beside  # a file of the script's folder
from paddleseg.core import evaluate, train
from paddleseg.cvlibs import Config, SegBuilder

builder = SegBuilder(Config(sys.argv[1]))
model, val_dataset = builder.model, builder.val_dataset
train(
    model, builder.train_dataset, val_dataset, builder.optimizer, sys.argv[2],
    iters=2, batch_size=2, log_iters=1, use_ema=True, losses=builder.loss,
)
_, accuracy, class_iou, _, _ = evaluate(model, val_dataset)
print("accuracy", accuracy, "sum of IoU", sum(class_iou))
"""


def test_paddleseg_trains_and_evaluates_as_we_do(tmp_path):
    write_scenes(tmp_path / "scenes", train=4, val=2)
    normalize = {"type": "Normalize", "mean": [0.5] * 3, "std": [0.5] * 3}
    crop = {"type": "RandomPaddingCrop", "crop_size": [64, 64]}
    data = {"type": "ADE20K", "dataset_root": str(tmp_path / "scenes")}
    config = {
        "batch_size": 2,
        "iters": 2,
        "train_dataset": {**data, "mode": "train", "transforms": [crop, normalize]},
        "val_dataset": {**data, "mode": "val", "transforms": [normalize]},
        "model": {
            "type": "SegFormer",
            "num_classes": 150,
            "embedding_dim": 32,
            "backbone": {"type": "MixVisionTransformer_B0", "in_channels": 3},
        },
        "optimizer": {"type": "AdamW", "weight_decay": 0.01},
        "lr_scheduler": {"type": "PolynomialDecay", "learning_rate": 0.001, "power": 1.0},
        "loss": {"types": [{"type": "OhemCrossEntropyLoss", "min_kept": 100}], "coef": [1]},
    }
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/script.py").write_text(SCRIPT)
    (tmp_path / "tools/beside.py").touch()
    script = [sys.executable, "-m", "paddleseg_segformer.compat_run", "tools/script.py"]
    command = [*script, path, "output"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    assert re.search(r"\[TRAIN\] epoch: 1, iter: 2/2, loss: \d", run.stdout)
    accuracy, ious = map(float, re.search(r"accuracy (\S+) sum of IoU (\S+)", run.stdout).groups())
    scores = validate(load_config(path), tmp_path / "output" / "iter_2" / "model.pdparams")
    assert abs(scores.accuracy - accuracy) < 1e-6
    assert abs(scores.miou * scores.present.sum() - ious) < 1e-5


def test_the_former_name_still_works(tmp_path):
    (tmp_path / "script.py").write_text("import sys; print(sys.argv)")
    command = ("-m", "paddleseg_segformer.plugin", "script.py", "--flag")
    run = python(*command, cwd=tmp_path)
    assert run.stdout.splitlines()[-1:] == ["['script.py', '--flag']"], run.stderr
    run = python(*command[:2])
    assert run.returncode == 1 and run.stderr.startswith("usage: ")
