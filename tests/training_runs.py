"""Short training runs of a tiny SegFormer on drawn scenes: a fraction of a second each."""

import os
from pathlib import Path

import numpy as np
import paddle
from small_models import save, smallest_model

from paddleseg_segformer.config import load_config
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import checkpoint, train
from paddleseg_segformer.engine.trainer import TrainerState
from paddleseg_segformer.inference.model_source import IMAGENET
from paddleseg_segformer.weights import read_saved_dict

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/quickstart.yaml"
TINY = (
    "model.embedding_dim=8",
    "model.backbone={type: MixVisionTransformer, in_channels: 3, embed_dims: [4, 8, 20, 32], "
    "depths: [1, 1, 1, 1]}",
    "train_dataset.transforms=[{type: RandomPaddingCrop, crop_size: [64, 64]}, {type: Normalize}]",
)


def draw_scenes(root):
    """Six images to train on and three to evaluate on."""
    write_scenes(root, train=6, val=3, size=(96, 96))
    return root


def overrides(scenes, *more):
    """The values of ``--opts``."""
    return [*(f"{split}_dataset.dataset_root={scenes}" for split in ("train", "val")), *TINY, *more]


def tiny_config(scenes, *opts, iters=8, **numbers):
    return load_config(
        CONFIG, overrides(scenes, *opts), iters=iters, **{"batch_size": 2, **numbers}
    )


def run(config, save_dir, **options):
    """With all that makes exact resuming hard: dropout, EMA, gradient accumulation."""
    defaults = {"grad_accum_steps": 2, "use_ema": True, "save_interval": 2, "log_iters": 1}
    train(config, save_dir=str(save_dir), **{**defaults, **options})
    return save_dir / f"iter_{config.iters}"


def with_teacher(folder):
    """The values of ``--opts`` for distillation from a model of random weights in a folder."""
    path = folder / "teacher.pdparams"
    partial = path.with_suffix(f".{os.getpid()}")  # several processes may write it
    os.replace(save(smallest_model(classes=150), partial), path)
    normalize = f"{{type: Normalize, mean: {IMAGENET['mean']}, std: {IMAGENET['std']}}}"
    crop = "{type: RandomPaddingCrop, crop_size: [64, 64]}"
    return f"train_dataset.transforms=[{crop}, {normalize}]", f"distillation={{teacher: {path}}}"


def assert_same_weights(actual, expected, **tolerances):
    """Compare two files of weights, or dictionaries of arrays; exactly without tolerances."""
    actual, expected = (
        v if isinstance(v, dict) else read_saved_dict(v) for v in (actual, expected)
    )
    assert len(expected) > 50 and actual.keys() == expected.keys()
    for name, value in expected.items():
        compare = np.testing.assert_allclose if tolerances else np.testing.assert_array_equal
        compare(actual[name], value, err_msg=name, **tolerances)


def state(folder, name):
    """A file's arrays; moments by the parameters' names in the model, not Paddle's own names."""
    names = {own: name for name, own in checkpoint.verify(folder)["parameters"].items()}
    found = {}
    for key, value in read_saved_dict(folder / name).items():
        own = next((own for own in sorted(names, reverse=True) if key.startswith(own + "_")), None)
        found[key if own is None else names[own] + key[len(own) :]] = value
    return found


def write_checkpoint(save_dir, iteration, run="a", size=1000):
    """Write a checkpoint of one weight, and return its manifest."""
    names = ("model.pdparams", "model.pdopt")
    states = {name: {"w": paddle.full([size], float(iteration))} for name in names}
    metadata = {
        "run": run,
        "seed": 0,
        "optimizer": "AdamW",
        "parameters": {"w": "w_0"},
        "config": {"a.0": None, "b": [1, 2.5]},
        "arrangement": {},
        "versions": {},
        "classes": ["a"],
        "palette": [[0, 0, 0]],
        "scaler": {},
        **TrainerState(iteration).to_manifest(),
    }
    return checkpoint.save(save_dir / f"iter_{iteration}", states, metadata)
