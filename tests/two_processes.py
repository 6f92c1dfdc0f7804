"""Training runs in the processes of paddle.distributed.launch, one after another.

Arguments: the folder of the scenes, the folder of the runs. Each process writes what it has drawn
and read to ``LABEL_RANK.json``.
"""

import json
import os
import signal
import sys
from pathlib import Path

import gpu_branches
import numpy as np
import paddle
from paddle.nn.layer.norm import _BatchNormBase
from training_runs import run, tiny_config, with_teacher

from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine import trainer as trainer_module
from paddleseg_segformer.engine.dataloader import BatchReader
from paddleseg_segformer.errors import InputError, RunError

NO_DROPOUT = (
    *("model.dropout=0.0", "model.backbone.drop_path_rate=0.0"),
    "model.backbone.recompute=true",  # Paddle's reentrant variant fails in several processes
    "loss.types=[{type: CrossEntropyLoss, avg_non_ignore: true}]",
)
SETUP = _BatchNormBase.__init__
TRAIN_STEP, READ = trainer_module.Trainer._train_step, BatchReader.__call__


def fixed(self, *arguments, **keywords):
    """BatchNorm with fixed statistics, so that batches may be split exactly."""
    SETUP(self, *arguments, **keywords)
    self._use_global_stats = True


def observed(label, notes):
    """``Trainer._train_step`` that notes the files and, after the step, draws.

    In the second step, the second process gets a NaN, or three signals as of the launcher.
    """

    def train_step(self, micro_batches, meter):
        step, second = self.state.iteration + 1, distributed.rank() == 1
        if label == "nan" and second and step == 2:
            micro_batches[0].arrays["img"][0] = float("nan")
            micro_batches[0] = micro_batches[0]._replace(bad_images=[0])
        if label == "stopped" and second and step == 2:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
        TRAIN_STEP(self, micro_batches, meter)
        notes["files"].append([file for batch in micro_batches for file in batch.files])
        notes["draws"].append([paddle.rand([1]).item(), np.random.rand()])

    return train_step


def broken(self, numbered):
    """``BatchReader.__call__`` of the second process: it cannot read the samples of step 3."""
    if distributed.rank() == 1 and numbered[0][0] >= 8:
        raise InputError("a.jpg: is broken")
    return READ(self, numbered)


def train(
    name,
    scenes,
    save_dir,
    label=None,
    iters=4,
    split=True,
    no_dropout=False,
    distilled=False,
    **options,
):
    """A run with four images per step; ``split`` into four batches, of two processes, or not."""
    label = label or name
    notes = {"files": [], "draws": [], "code": 0}
    _BatchNormBase.__init__ = fixed if no_dropout else SETUP
    trainer_module.Trainer._train_step = observed(label, notes)
    BatchReader.__call__ = broken if label == "failing" else READ
    opts = (*(NO_DROPOUT if no_dropout else ()), *(with_teacher(Path(save_dir)) * distilled))
    config = tiny_config(scenes, *opts, iters=iters, batch_size=1 if split else 4)
    options = {"grad_accum_steps": 2 if split else 1, "use_ema": False, **options}
    try:
        run(config, Path(save_dir) / name, **options)
    except SystemExit as stop:
        notes["code"] = stop.code
    except (InputError, RunError) as error:
        notes["code"] = str(error)
    finally:
        _BatchNormBase.__init__ = SETUP
        trainer_module.Trainer._train_step, BatchReader.__call__ = TRAIN_STEP, READ
    text = json.dumps(notes)
    (Path(save_dir) / f"{label}_{distributed.rank()}.json").write_text(text)
    return notes


EXACT = {"no_dropout": True, "do_eval": True}
FROZEN = {"no_dropout": True, "freeze_backbone": True, "distilled": True}

if __name__ == "__main__":
    scenes, folder = sys.argv[1:]
    paddle.set_device("cpu")
    if gpu_branches.ENVIRONMENT in os.environ:
        gpu_branches.install()
    train("exact", scenes, folder, **EXACT)
    train("frozen", scenes, folder, **FROZEN)
    train("whole", scenes, folder, use_ema=True, do_eval=True)
    train("resumed", scenes, folder, label="stopped", use_ema=True, save_interval=100)
    train("resumed", scenes, folder, use_ema=True, resume=True)
    train("nan", scenes, folder, iters=3)
    train("failing", scenes, folder, save_interval=100)
