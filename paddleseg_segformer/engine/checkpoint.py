"""One checkpoint on disk: a folder with state dicts and a manifest of their checksums.

A checkpoint is written under a temporary name, synced to disk and renamed, so that killing the
process at any moment leaves the old checkpoint, the new one, or both.
"""

import contextlib
import hashlib
import json
import shutil
import warnings

import numpy as np
import paddle

from ..errors import InputError, RunError
from ..fs import atomic_write, fsync
from ..inference import manifest as manifest_format
from ..inference.manifest import FORMAT, MANIFEST, ManifestError
from ..log import logger
from ..weights import read_saved_dict

MODEL, OPTIMIZER, EMA = "model.pdparams", "model.pdopt", "ema_model.pdparams"
# Suffixes of a folder that is being written, replaced by a newer one, or removed.
PARTIAL, REPLACED, REMOVED = ".partial", ".replaced", ".removed"


class DamagedError(Exception):
    """A checkpoint is incomplete or corrupt; the message names the file."""


def save(folder, states, metadata):
    """Write a checkpoint atomically, and return its manifest.

    Args:
        folder: ``Path``, such as ``save_dir/iter_1000``.
        states: State dicts by file name.
        metadata: The manifest's entries besides the files, as plain JSON.

    Raises:
        RunError: It cannot be written; an earlier checkpoint of this name is kept.
    """
    partial = folder.with_name(folder.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for name, state in states.items():
            paddle.save(state, str(partial / name))
            fsync(partial / name)
        manifest = {**metadata, "files": {name: _file_entry(partial / name) for name in states}}
        write_manifest(partial, manifest)
        _replace(partial, folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = str(error.strerror)
        with contextlib.suppress(OSError):
            reason += f"; {shutil.disk_usage(folder.parent).free / 1e6:,.0f} MB are free"
        raise RunError(
            f"{folder}: cannot be saved ({reason}); earlier checkpoints are unchanged."
        ) from error
    return manifest


def write_manifest(folder, manifest):
    """Write a checkpoint's manifest, or replace it."""
    manifest = json.loads(json.dumps(manifest, default=str))  # the checksum is of what is read back
    content = {**manifest, "format": FORMAT}
    content["checksum"] = checksum(content)
    atomic_write(folder / MANIFEST, json.dumps(content, indent=1).encode())


def read_manifest(folder):
    """The manifest of a checkpoint, whose files are not verified.

    Raises:
        DamagedError: It is missing or corrupt, or has an invalid entry.
        InputError: It is of a newer format.
    """
    try:
        manifest = manifest_format.parse(folder / MANIFEST)
        if manifest.pop("checksum", None) != checksum(manifest):
            raise DamagedError(f"{MANIFEST} does not match its checksum")
        manifest = {"evaluations_since_best": 0, **manifest}  # the first checkpoints lack it
        manifest_format.check(manifest, manifest_format.ENTRIES, folder / MANIFEST)
        manifest.pop("format", None)
    except (ManifestError, RecursionError) as error:
        raise DamagedError(error) from error
    return manifest


def verify(folder):
    """Check a checkpoint's files against its manifest, which is returned.

    Raises:
        DamagedError: A file is missing or corrupt.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file() or _file_entry(path) != entry:
            raise DamagedError(f"{name} is missing or does not match its checksum")
    return manifest


def verify_or_warn(folder):
    """``verify`` of an ``iter_N``, but a damaged one is logged, and None is returned."""
    try:
        manifest = verify(folder)
        if not {MODEL, OPTIMIZER} <= manifest["files"].keys():
            raise DamagedError(f"it lacks {MODEL} or {OPTIMIZER}")
        return manifest
    except DamagedError as error:
        logger.warning("%s is damaged (%s): it is ignored", folder, error)
        return None


def load(folder, manifest, model, optimizer, ema_model=None):
    """Load the states of a verified checkpoint into newly built components.

    The EMA model, if any, gets the model's weights if none were saved for it.

    Raises:
        InputError: The checkpoint is of another model or optimizer.
    """
    optimizer_type = type(optimizer).__name__
    if manifest["optimizer"] != optimizer_type:
        raise InputError(
            f"{folder}: was trained with {manifest['optimizer']}, not {optimizer_type}; keep it, "
            "or start from the weights with model.pretrained."
        )
    _load_model(model, folder / MODEL)
    if ema_model is not None:
        _load_model(ema_model, folder / (EMA if EMA in manifest["files"] else MODEL))
    if manifest["parameters"].keys() != parameter_names(model).keys():
        raise InputError(f"{folder / MANIFEST}: names other parameters than {MODEL} has.")
    state = read_saved_dict(folder / OPTIMIZER)
    state = _rename_parameters(state, manifest["parameters"], model)
    _check_optimizer_state(state, model, folder / OPTIMIZER)
    optimizer.set_state_dict(state)


def parameter_names(model):
    """Paddle's own name of each parameter, by its name in the model.

    Optimizer states use Paddle's names, which differ between two instances of a model because they
    contain a counter of the layers built in this process.
    """
    return {name: parameter.name for name, parameter in model.named_parameters()}


def remove(folder):
    """Delete a checkpoint; it is renamed first, so that a half-deleted one is never loaded."""
    removed = folder.with_name(folder.name + REMOVED)
    try:
        folder.rename(removed)
        if removed.is_symlink():
            removed.unlink()
        else:
            shutil.rmtree(removed)
    except OSError as error:
        logger.warning("%s cannot be removed (%s)", folder, error)


def _replace(partial, folder):
    replaced = folder.with_name(folder.name + REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)
    if folder.exists():
        folder.rename(replaced)
    partial.rename(folder)
    fsync(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def checksum(manifest):
    """The checksum of plain JSON, such as a manifest without it."""
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _file_entry(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _rename_parameters(state, saved_names, model):
    names = parameter_names(model)
    # In reverse order, so that the longer of two names with a common prefix comes first.
    renames = sorted(((old, names[name]) for name, old in saved_names.items()), reverse=True)
    renamed = {}
    for key, value in state.items():
        new = next((key.replace(old, n, 1) for old, n in renames if key.startswith(old + "_")), key)
        renamed[new] = value
    return renamed


def _check_optimizer_state(state, model, path):
    """Check that the moments are those of the model's parameters, which Paddle does not."""
    shapes = {parameter.name: parameter.shape for parameter in model.parameters()}
    for key, value in state.items():
        if not hasattr(value, "shape"):  # the schedule's state
            continue
        shape = next((s for name, s in shapes.items() if key.startswith(f"{name}_")), None)
        if shape is None or (np.size(value) > 1 and list(value.shape) != shape):
            raise InputError(f"{path}: is of another model ({key} does not match a parameter).")


def _load_model(model, path):
    state = read_saved_dict(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one for each mismatch; the error names the first
        missing, unexpected = model.set_state_dict(state)
    if missing or unexpected:
        name = (missing or unexpected)[0]
        raise InputError(f"{path}: is a checkpoint of another model ({name} does not match).")
