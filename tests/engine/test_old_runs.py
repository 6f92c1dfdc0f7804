"""Runs of earlier formats, stored as their files, are resumed and used for prediction."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
from training_runs import CONFIG, draw_scenes

from paddleseg_segformer import Predictor
from paddleseg_segformer.config import load_config
from paddleseg_segformer.engine import checkpoint, train
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.weights import read_saved_dict

# Of format 0: two iterations of this model with --use_ema --do_eval --save_interval 1.
ARCHIVE = Path(__file__).with_name("run_of_format_0.tar.xz")
MODEL = "{type: MixVisionTransformer, in_channels: 3, embed_dims: [4, 4, 4, 4], "
MODEL += "num_heads: [1, 1, 1, 1], depths: [1, 1, 1, 1]}"
CROP = "{type: RandomPaddingCrop, crop_size: [32, 32]}"


@pytest.mark.integration
def test_a_run_of_format_0(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)  # the config in its manifest names the folder "scenes"
    draw_scenes(Path("scenes"))
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall()
    before = read_saved_dict("run/iter_2/model.pdparams")
    best = checkpoint.verify(Path("run/best_model"))["best"]
    options = [f"{split}_dataset.dataset_root=scenes" for split in ("train", "val")]
    options += ["model.embedding_dim=4", f"model.backbone={MODEL}"]
    options += [f"train_dataset.transforms=[{CROP}, {{type: Normalize}}]"]
    config = load_config(CONFIG, options, iters=3, batch_size=2)
    caplog.set_level("INFO", "paddleseg_segformer")
    train(config, save_dir="run", resume=True, use_ema=True, do_eval=True)
    assert "Resumed from run/iter_2 at iteration 2" in caplog.text
    changed = [line for line in caplog.messages if "Config changed" in line]
    assert changed == ["Config changed since the checkpoint: iters: 2 -> 3"]
    assert [line["iteration"] for line in read_lines("run") if line["kind"] == "train"] == [2, 3]
    after = read_saved_dict("run/iter_3/model.pdparams")
    moved = max(np.abs(after[name] - value).max() for name, value in before.items())
    assert 0 < moved < 0.1  # one step of AdamW
    assert best["iteration"] == 2 and checkpoint.verify(Path("run/iter_3"))["best"]["miou"] > 0
    assert Predictor("run/best_model").classes[:2] == ["wall", "building"]
