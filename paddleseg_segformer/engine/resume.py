"""Resuming: which checkpoint to resume from, and restoring the training state from it."""

from pathlib import Path

from ..errors import InputError
from ..log import logger
from . import checkpoint, distributed
from .checkpoint import MANIFEST, MODEL, OPTIMIZER, DamagedError
from .run_dir import RUN, clean_up, list_checkpoints, read_run


def find_resume_checkpoint(options):
    """Folder and manifest of the intact checkpoint that ``TrainOptions`` select, or None.

    Raises:
        InputError: The given checkpoint cannot be resumed, all checkpoints are damaged, or a new
            run would write into the folder of an earlier one.
    """
    save_dir, is_first = Path(options.save_dir), distributed.rank() == 0
    if options.resume_model is not None:
        flag = f"--resume_model {options.resume_model}"
        return Path(options.resume_model), open_checkpoint(options.resume_model, flag)
    if options.resume:  # in the first process alone, since it cleans up the folder
        newest = distributed.broadcast_object(newest_checkpoint(save_dir) if is_first else None)
        if newest is None:
            logger.info("%s has no checkpoint to resume from. Starting from scratch", save_dir)
        return newest
    candidates = [save_dir / "best_model", *list_checkpoints(save_dir)] if is_first else []
    for folder in reversed(candidates):
        if folder.is_dir() and any(folder.iterdir()):  # also of PaddleSeg, or damaged
            raise InputError(
                f"--save_dir {save_dir}: holds {folder.name} of an earlier run; add --resume to "
                "continue it, or choose another folder."
            )
    return None


def newest_checkpoint(save_dir):
    """Folder and manifest of the newest intact checkpoint of a folder's run, or None.

    A run that started from another checkpoint and has not saved yet resumes from that one.

    Raises:
        InputError: There are checkpoints, but all are damaged.
    """
    if not save_dir.is_dir():
        return None
    clean_up(save_dir)
    run, origin = read_run(save_dir)
    damaged = None
    for folder in reversed(list_checkpoints(save_dir)):
        manifest = checkpoint.verify_or_warn(folder)
        if manifest is None:
            damaged = damaged or folder
        elif run in (None, manifest["run"]):
            return folder, manifest
    if origin is not None and origin.is_dir():
        return origin, open_checkpoint(origin, f"--resume: {origin}, from which {save_dir} started")
    if damaged is not None:
        raise InputError(
            f"--resume: {save_dir} has no intact checkpoint of this program; restore one, or train "
            f"into another folder, with model.pretrained={damaged / MODEL} to start from its "
            "weights."
        )
    if run is None and (save_dir / RUN).exists():
        raise InputError(
            f"--resume: {save_dir / RUN} is damaged, so that the checkpoint from which the run "
            "started is unknown; give it with --resume_model, or remove the file to start from "
            "scratch."
        )
    return None


def open_checkpoint(folder, name):
    """Verify the checkpoint that a run is to start from, and return its manifest.

    Args:
        folder: The checkpoint's folder.
        name: What the errors call it, such as ``--resume_model`` and the folder.

    Raises:
        InputError: The folder is not a checkpoint that can be resumed, or is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{name}: no such folder; give save_dir/iter_N.")
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"{name}: has no {MANIFEST}, so it is not a checkpoint of this "
            f"program; to start from its weights, set model.pretrained to {folder / MODEL}."
        )
    try:
        manifest = checkpoint.verify(folder)
    except DamagedError as error:
        raise InputError(
            f"{name}: is damaged ({error}); give another checkpoint to --resume_model."
        ) from error
    if OPTIMIZER not in manifest["files"]:
        raise InputError(
            f"{name}: has weights only, no optimizer state; give an iter_N, or "
            "start from the weights with model.pretrained."
        )
    return manifest


def check_iterations(iters, resume_from):
    """Refuse a last iteration before that of the checkpoint, from which nothing would be trained.

    Raises:
        InputError: It is before it.
    """
    if resume_from is not None and resume_from[1]["iteration"] > iters:
        folder, manifest = resume_from
        raise InputError(
            f"--iters {iters}: {folder} is at iteration {manifest['iteration']} already; give a "
            "larger number to continue it, or start in another --save_dir."
        )


def choose_seed(options, resume_from):
    """The random seed: the checkpoint's, which ``--seed`` must not contradict, ``--seed`` or 0."""
    if resume_from is None:
        return options.seed or 0
    folder, manifest = resume_from
    if options.seed not in (None, manifest["seed"]):
        raise InputError(
            f"--seed {options.seed}: {folder} was trained with {manifest['seed']}, which "
            "determines the order of its samples; leave the option out."
        )
    return manifest["seed"]


def restore(folder, manifest, step, state, metadata):
    """Restore ``TrainStep`` and ``TrainerState``, and log which settings have changed since.

    Args:
        folder, manifest: The checkpoint, as returned by ``find_resume_checkpoint``.
        step, state: Their states are replaced.
        metadata: The new run's ``config`` and ``arrangement``, as in a manifest.
    """
    checkpoint.load(folder, manifest, step.model, step.optimizer, step.ema_model)
    step.set_scaler_state(manifest["scaler"])
    state.restore(manifest)
    logger.info("Resumed from %s at iteration %d", folder, state.iteration)
    old, new = (_flatten({**m["config"], **m["arrangement"]}) for m in (manifest, metadata))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    for key in changed:
        change = f"{key}: {old.get(key)} -> {new.get(key)}"
        logger.warning("Config changed since the checkpoint: %s", change)
    if any(key.startswith("lr_scheduler.") or key == "iters" for key in changed):
        step.refresh_rate()


def _flatten(tree, prefix=""):
    """Nested dictionaries and lists as one dictionary with dotted keys."""
    if not isinstance(tree, (dict, list)):
        return {prefix[:-1]: tree}
    flat = {}
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
