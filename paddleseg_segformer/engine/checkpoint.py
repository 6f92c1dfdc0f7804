"""A run's folder: ``iter_N/`` with what resuming needs, ``best_model/``.

A checkpoint is a folder with a manifest that lists its files and their checksums. It is written
beside its place, synchronized to the disk and renamed, so that a process that is killed at any
instant leaves the old one, the new one, or both.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import uuid
import warnings
from pathlib import Path

import paddle

from ..errors import InputError, RunError
from ..fs import atomic_write, fsync
from ..inference.model_source import MANIFEST
from ..log import logger
from ..weights import read_saved_dict

MODEL, OPTIMIZER, EMA = "model.pdparams", "model.pdopt", "ema_model.pdparams"
RUN = "run.json"
# A folder that is being written, one in whose place another comes, and one that is being removed.
PARTIAL, REPLACED, REMOVED = ".partial", ".replaced", ".removed"


class DamagedError(Exception):
    """A checkpoint is not what was written; the text says in which file."""


def start_run(save_dir, origin=None):
    """Note in a folder that a new run begins, whose checkpoints alone count from now on.

    Args:
        save_dir: The folder.
        origin: The checkpoint that it begins from, or None.

    Returns:
        The run's name.
    """
    name = uuid.uuid4().hex
    # A folder that is moved as a whole keeps the origins in it.
    origin = None if origin is None else os.path.relpath(origin, save_dir)
    _write_json(Path(save_dir) / RUN, {"run": name, "origin": origin})
    return name


def read_run(save_dir):
    """The name of a folder's run and the checkpoint that it began from, or None for either."""
    try:
        noted = json.loads((Path(save_dir) / RUN).read_text(encoding="utf-8"))
        origin = noted["origin"]
        return noted["run"], None if origin is None else Path(save_dir) / origin
    except (OSError, ValueError, KeyError, TypeError):  # without it, all checkpoints are one run's
        return None, None


def save(folder, states, facts):
    """Write a checkpoint: what has this name is whole.

    Args:
        folder: Path, such as ``save_dir/iter_1000``.
        states: State dicts by file name.
        facts: What the manifest says beside the files, as plain JSON.

    Returns:
        The manifest.

    Raises:
        RunError: It cannot be written; a checkpoint that had this name is still there.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, state in states.items():
            paddle.save(state, str(partial / name))
        manifest = {**facts, "files": {name: _describe(partial / name) for name in states}}
        write_manifest(partial, manifest)
        _replace(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"{folder}: cannot be saved ({error.strerror}{_room(folder.parent)}); earlier "
            "checkpoints are as they were."
        ) from error
    return manifest


def write_manifest(folder, manifest):
    """Give a checkpoint its manifest, or another one in place of that which it has."""
    manifest = json.loads(json.dumps(manifest, default=str))  # as it will be read
    _write_json(folder / MANIFEST, {**manifest, "checksum": _checksum(manifest)})


def _write_json(path, content):
    atomic_write(path, json.dumps(content, indent=1).encode())


def _room(folder):
    try:
        return f"; {shutil.disk_usage(folder).free / 1e6:,.0f} MB are free"
    except OSError:
        return ""


def verify(folder):
    """The manifest of a checkpoint that is whole.

    Raises:
        DamagedError: A file is missing or not as it was written.
    """
    manifest = _read_manifest(folder)
    for name, written in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise DamagedError(f"{name} is missing")
        if path.stat().st_size != written["bytes"]:
            raise DamagedError(f"{name} has {path.stat().st_size} bytes of {written['bytes']}")
        if _digest(path) != written["sha256"]:
            raise DamagedError(f"{name} has another checksum than was written")
    return manifest


def newest(save_dir):
    """The newest whole checkpoint of the folder's run; of a damaged one a warning is logged.

    Returns:
        Folder and manifest, or None where the run has not saved any.

    Raises:
        InputError: There are checkpoints, but all are damaged.
    """
    save_dir = Path(save_dir)
    if not save_dir.is_dir():
        return None
    _clean_up(save_dir)
    run, origin = read_run(save_dir)
    damaged = None
    for folder in reversed(folders(save_dir)):
        try:
            manifest = verify(folder)
        except DamagedError as error:
            logger.warning("%s is damaged (%s): going back to the one before", folder, error)
            damaged = damaged or folder
            continue
        if run in (None, manifest["run"]):
            return folder, manifest
    if origin is not None and origin.is_dir():
        return origin, open_checkpoint(origin)
    if damaged is not None:
        raise InputError(
            f"--resume: {save_dir} has no whole checkpoint of this program; restore one, or train "
            f"into another folder, with model.pretrained={damaged / MODEL} to start from its "
            "weights."
        )
    return None


def open_checkpoint(folder):
    """The manifest of the checkpoint that a user named.

    Raises:
        InputError: The folder is no checkpoint of this program, or damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--resume_model {folder}: no such folder; give save_dir/iter_N.")
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"--resume_model {folder}: has no {MANIFEST}, so it is no checkpoint of this program; "
            f"to start from its weights, set model.pretrained to {folder / MODEL}."
        )
    try:
        manifest = verify(folder)
    except DamagedError as error:
        raise InputError(
            f"--resume_model {folder}: is damaged ({error}); "
            "--resume finds the newest checkpoint that is whole."
        ) from error
    if OPTIMIZER not in manifest["files"]:
        raise InputError(
            f"--resume_model {folder}: holds weights alone; give an iter_N, or start from the "
            "weights with model.pretrained."
        )
    return manifest


def load(folder, manifest, model, optimizer, ema_model=None):
    """Put a checkpoint's states into model and optimizer.

    Args:
        folder: ``save_dir/iter_N``, a whole checkpoint.
        manifest: Its manifest.
        model, optimizer: What the checkpoint was saved from, built anew.
        ema_model: The averaged model, or None.

    Raises:
        InputError: The checkpoint is one of another model or optimizer.
    """
    folder = Path(folder)
    here = type(optimizer).__name__
    if manifest["optimizer"] != here:
        raise InputError(
            f"{folder}: was trained with {manifest['optimizer']}, not {here}; keep it, or start "
            "from the weights with model.pretrained."
        )
    _set_model_state(model, folder / MODEL)
    if ema_model is not None:
        averaged = folder / EMA
        _set_model_state(ema_model, averaged if averaged.exists() else folder / MODEL)
    state = read_saved_dict(folder / OPTIMIZER)
    optimizer.set_state_dict(_rename_parameters(state, manifest["parameters"], model))


def parameter_names(model):
    """Paddle's own name of each parameter, by its name in the model.

    Optimizer states go by Paddle's names, which count the layers that a process has built: the
    same model built a second time has others.
    """
    return {name: parameter.name for name, parameter in model.named_parameters()}


def remove_old(save_dir, keep, manifest):
    """Remove a run's checkpoints that are older than its ``keep`` newest whole ones; 0 keeps all.

    Args:
        save_dir: The run's folder; other runs' checkpoints in it are left alone.
        keep: How many.
        manifest: Of the newest one, which is known to be whole.
    """
    whole = 0
    for folder in reversed(folders(save_dir)) if keep > 0 else ():
        try:
            found = _read_manifest(folder)
        except DamagedError:
            continue
        if found["run"] != manifest["run"] or found["iteration"] > manifest["iteration"]:
            continue
        if whole >= keep:
            _remove(folder)
        else:
            whole += found["iteration"] == manifest["iteration"] or _is_whole(folder)


def _remove(folder):
    """Remove a checkpoint; while that lasts it is none any more."""
    removed = folder.with_name(folder.name + REMOVED)
    try:
        folder.rename(removed)
        if removed.is_symlink():
            removed.unlink()
        else:
            shutil.rmtree(removed)
    except OSError as error:
        logger.warning("%s cannot be removed (%s)", folder, error)


def _is_whole(folder):
    try:
        verify(folder)
    except DamagedError as error:
        logger.warning("%s is damaged (%s), and not counted", folder, error)
        return False
    return True


def count_saved(save_dir):
    """How many ``iter_N`` the folder's run has, as far as their manifests can be read."""
    run, _ = read_run(save_dir)
    count = 0
    for folder in folders(save_dir):
        with contextlib.suppress(DamagedError):
            count += run in (None, _read_manifest(folder)["run"])
    return count


def folders_of_runs(save_dir):
    """The folders that hold a run's weights, PaddleSeg's too: ``best_model``, ``iter_N`` by N."""
    found = [Path(save_dir) / "best_model", *folders(save_dir)]
    return [f for f in found if (f / MANIFEST).is_file() or (f / MODEL).is_file()]


def folders(save_dir):
    """The folders ``iter_N``, by N."""
    numbered = {}
    for path in Path(save_dir).iterdir():
        number = re.fullmatch(r"iter_(\d+)", path.name)
        if number and path.is_dir():
            numbered[int(number[1])] = path
    return [numbered[number] for number in sorted(numbered)]


def _replace(partial, folder):
    """Rename a folder to a name that may be taken."""
    replaced = folder.with_name(folder.name + REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _clean_up(save_dir):
    """Finish or undo what a killed process was at."""
    for path in save_dir.iterdir():
        if not re.fullmatch(r"(iter_\d+|(ema_)?best_model)\.\w+", path.name):
            continue
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in (PARTIAL, REPLACED, REMOVED):
            shutil.rmtree(path, ignore_errors=True)


def _read_manifest(folder):
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written = manifest.pop("checksum")
    except FileNotFoundError:
        raise DamagedError(f"{MANIFEST} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(f"{MANIFEST} cannot be read") from error
    if written != _checksum(manifest):
        raise DamagedError(f"{MANIFEST} has another checksum than was written")
    return manifest


def _checksum(manifest):
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _describe(path):
    fsync(path)
    return {"bytes": path.stat().st_size, "sha256": _digest(path)}


def _digest(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


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
    state = read_saved_dict(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each tensor that does not fit; the error names the first
        missing, unexpected = model.set_state_dict(state)
    if missing or unexpected:
        name = (missing or unexpected)[0]
        raise InputError(f"{path}: is a checkpoint of another model ({name} does not match).")


def check_disk_space(save_dir, model, saves, saved, keep, use_ema):
    """See whether the checkpoints that a run will keep fit on the disk.

    Args:
        save_dir: The run's folder.
        model: The model; the optimizer is taken to keep two moments of each weight, as Adam does.
        saves: How many checkpoints the run writes from its start to its end.
        saved: How many of them are there.
        keep: How many of them will be kept at a time; 0 keeps all.
        use_ema: Whether there is an averaged model.

    Raises:
        InputError: They do not.
    """
    weights = 4 * sum(tensor.size for tensor in model.state_dict().values()) * (1 + use_ema)
    checkpoint = weights + 8 * sum(p.size for p in model.parameters() if not p.stop_gradient)
    # One more than is kept, while the next is written; and the best models.
    wanted = min(saves, keep + 1) if keep > 0 else saves
    needed = checkpoint * max(0, wanted - saved) + weights
    free = shutil.disk_usage(save_dir).free
    if needed > free:
        raise InputError(
            f"--save_dir {save_dir}: {free / 1e9:.2f} GB are free, but {wanted} checkpoints of "
            f"{checkpoint / 1e9:.2f} GB need {needed / 1e9:.2f}; make room, lower "
            "--keep_checkpoint_max or raise --save_interval."
        )
