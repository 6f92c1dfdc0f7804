"""A run's folder: ``iter_N/`` with what resuming needs, ``best_model/``."""

import json
import re
import shutil
from pathlib import Path

import paddle

from ..errors import InputError
from ..weights import read_pdparams

MODEL, OPTIMIZER, EMA, PROGRESS = "model.pdparams", "model.pdopt", "ema_model.pdparams", "run.json"


def save(folder, states, progress):
    """Write a checkpoint folder whole: a folder of this name is complete, or is the one before.

    Args:
        folder: Path, such as ``save_dir/iter_1000``.
        states: State dicts by file name.
        progress: What else resuming needs, as plain JSON.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, state in states.items():
        paddle.save(state, str(partial / name))
    (partial / PROGRESS).write_text(json.dumps(progress, indent=1), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)


def load(folder, model, optimizer, ema_model=None):
    """Put a checkpoint's states into model and optimizer.

    Args:
        folder: ``iter_N``, of this project or PaddleSeg's.
        model, optimizer: What the checkpoint was saved from, built anew.
        ema_model: The averaged model, or None.

    Returns:
        The progress that was saved; of a PaddleSeg checkpoint only ``iteration``, from its name.

    Raises:
        InputError: The folder is no checkpoint, or one of another model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--resume_model {folder}: no such folder; give save_dir/iter_N.")
    _set_model_state(model, folder / MODEL)
    if ema_model is not None:
        averaged = folder / EMA
        _set_model_state(ema_model, averaged if averaged.exists() else folder / MODEL)
    optimizer.set_state_dict(read_pdparams(folder / OPTIMIZER))
    try:
        return json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        number = re.fullmatch(r"iter_(\d+)", folder.resolve().name)
        if not number:
            raise InputError(
                f"--resume_model {folder}: has no {PROGRESS}, and its name is not iter_N."
            ) from None
        return {"iteration": int(number.group(1))}


def _set_model_state(model, path):
    state = read_pdparams(path)
    missing, unexpected = model.set_state_dict(state)
    if missing or unexpected:
        name = (missing or unexpected)[0]
        raise InputError(f"{path}: is a checkpoint of another model ({name} does not match).")


def remove_old(save_dir, keep):
    """Remove all but the ``keep`` newest ``iter_N`` of a run's folder; 0 keeps all."""
    folders = [p for p in Path(save_dir).glob("iter_*") if re.fullmatch(r"iter_\d+", p.name)]
    folders.sort(key=lambda path: int(path.name[len("iter_") :]))
    for folder in folders[:-keep] if keep > 0 else []:
        shutil.rmtree(folder)
