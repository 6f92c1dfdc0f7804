"""A run's folder: ``iter_N/`` with what resuming needs, ``best_model/``."""

import json
import re
import shutil
from pathlib import Path

import paddle

from ..errors import InputError
from ..weights import read_dictionary

MODEL, OPTIMIZER, EMA, PROGRESS = "model.pdparams", "model.pdopt", "ema_model.pdparams", "run.json"


def save(folder, states, progress):
    """Write a checkpoint folder: what has this name is complete.

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
        folder: ``save_dir/iter_N``.
        model, optimizer: What the checkpoint was saved from, built anew.
        ema_model: The averaged model, or None.

    Returns:
        The progress that was saved.

    Raises:
        InputError: The folder is no checkpoint, or one of another model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--resume_model {folder}: no such folder; give save_dir/iter_N.")
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"--resume_model {folder}: has no {PROGRESS}, so it is no checkpoint of this program; "
            f"to start from its weights, set model.pretrained to {folder / MODEL}."
        ) from None
    _set_model_state(model, folder / MODEL)
    if ema_model is not None:
        averaged = folder / EMA
        _set_model_state(ema_model, averaged if averaged.exists() else folder / MODEL)
    state = read_dictionary(folder / OPTIMIZER)
    optimizer.set_state_dict(_rename_parameters(state, progress["parameters"], model))
    return progress


def parameter_names(model):
    """Paddle's own name of each parameter, by its name in the model.

    Optimizer states go by Paddle's names, which count the layers that a process has built: the
    same model built a second time has others.
    """
    return {name: parameter.name for name, parameter in model.named_parameters()}


def _rename_parameters(state, saved_names, model):
    here = parameter_names(model)
    # In reverse, so that of two names of which one begins the other, the longer comes first.
    renames = sorted(((old, here[name]) for name, old in saved_names.items()), reverse=True)
    renamed = {}
    for key, value in state.items():
        new = next((key.replace(old, n, 1) for old, n in renames if key.startswith(old + "_")), key)
        renamed[new] = value
    return renamed


def _set_model_state(model, path):
    state = read_dictionary(path)
    missing, unexpected = model.set_state_dict(state)
    if missing or unexpected:
        name = (missing or unexpected)[0]
        raise InputError(f"{path}: is a checkpoint of another model ({name} does not match).")


def remove_old(save_dir, keep, iteration):
    """Remove all but the ``keep`` newest ``iter_N`` up to this iteration; 0 keeps all.

    Later ones are another run's, which had the folder before.
    """
    numbers = [re.fullmatch(r"iter_(\d+)", path.name) for path in Path(save_dir).iterdir()]
    numbers = sorted(int(number[1]) for number in numbers if number)
    own = [number for number in numbers if number <= iteration]
    for number in own[:-keep] if keep > 0 else []:
        shutil.rmtree(Path(save_dir) / f"iter_{number}")
