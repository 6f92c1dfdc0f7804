"""A run's folder: its identity in ``run.json``, its checkpoints ``iter_N/``, its disk space."""

import contextlib
import json
import math
import os
import re
import shutil
import uuid
from pathlib import Path

from ..errors import InputError
from ..fs import atomic_write
from . import checkpoint
from .checkpoint import PARTIAL, REMOVED, REPLACED, DamagedError

RUN = "run.json"


def start_run(save_dir, origin=None, run=None):
    """Register a run in a folder and return its id; other runs' checkpoints are ignored.

    Args:
        save_dir: The folder.
        origin: The checkpoint that the run starts from, or None.
        run: The id of a run in the folder whose registration was lost; None means a new run.

    Raises:
        OSError: The folder cannot be written to.
    """
    run = run or uuid.uuid4().hex
    # Relative, so that it stays valid when a folder that holds both is moved.
    origin = None if origin is None else os.path.relpath(origin, save_dir)
    content = {"run": run, "origin": origin}
    content["checksum"] = checkpoint.checksum(content)
    atomic_write(Path(save_dir) / RUN, json.dumps(content, indent=1).encode())
    return run


def read_run(save_dir):
    """The id of a folder's run and the checkpoint that it started from, or None for either."""
    try:
        content = json.loads((Path(save_dir) / RUN).read_text(encoding="utf-8"))
        run, origin = content["run"], content["origin"]
        expected = checkpoint.checksum({"run": run, "origin": origin})
        if not isinstance(run, str) or content.get("checksum", expected) != expected:
            raise ValueError  # the first runs have no checksum
        return run, None if origin is None else Path(save_dir) / origin
    # Then all checkpoints count as one run's.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None


def list_checkpoints(save_dir):
    """The folders ``iter_N``, sorted by N; they are not verified."""
    folders = [path for path in Path(save_dir).iterdir() if path.is_dir()]
    folders = [path for path in folders if re.fullmatch(r"iter_\d+", path.name)]
    return sorted(folders, key=lambda path: int(path.name[5:]))


def count_checkpoints(save_dir):
    """The number of ``iter_N`` of the folder's run whose manifests can be read."""
    run, _ = read_run(save_dir)
    return sum(run in (None, manifest["run"]) for _, manifest in _read_manifests(save_dir))


def _read_manifests(save_dir):
    """Yield folder and manifest of each ``iter_N``, the newest first, if it can be read."""
    for folder in reversed(list_checkpoints(save_dir)):
        with contextlib.suppress(DamagedError):
            yield folder, checkpoint.read_manifest(folder)


def prune_checkpoints(save_dir, keep, newest):
    """Remove all but a run's ``keep`` newest intact checkpoints, if ``keep`` is not 0.

    ``newest`` is the manifest of the checkpoint just written, which need not be verified.
    """
    intact = 0
    for folder, manifest in _read_manifests(save_dir) if keep > 0 else ():
        if manifest["run"] != newest["run"] or manifest["iteration"] > newest["iteration"]:
            continue
        if intact >= keep:
            checkpoint.remove(folder)
        else:
            is_newest = manifest["iteration"] == newest["iteration"]
            intact += is_newest or checkpoint.verify_or_warn(folder) is not None


def clean_up(save_dir):
    """Complete or undo what a killed process was doing to the folder's checkpoints."""
    for path in save_dir.iterdir():
        if not re.fullmatch(r"(iter_\d+|(ema_)?best_model)\.\w+", path.name):
            continue
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in (PARTIAL, REPLACED, REMOVED):
            shutil.rmtree(path, ignore_errors=True)


def check_disk_space(options, iters, model):
    """Check that the checkpoints that a run will keep fit on the disk.

    The optimizer is assumed to keep two moments per weight, as Adam does.

    Raises:
        InputError: They do not fit.
    """
    save_dir, keep = options.save_dir, options.keep_checkpoint_max
    weights = 4 * sum(tensor.size for tensor in model.state_dict().values())
    weights *= 1 + options.use_ema
    size = weights + 8 * sum(p.size for p in model.parameters() if not p.stop_gradient)
    count = math.ceil(iters / options.save_interval)
    if keep > 0:
        count = min(count, keep + 1)  # one more while the next is written
    existing = count_checkpoints(save_dir) if options.resume else 0
    needed = size * max(0, count - existing) + weights  # of the best models
    free = shutil.disk_usage(save_dir).free
    if needed > free:
        raise InputError(
            f"--save_dir {save_dir}: {size_text(free)} are free, but {count} "
            f"checkpoint{'s' * (count > 1)} of {size_text(size)} and the best models need "
            f"{size_text(needed)}; free disk space, lower --keep_checkpoint_max or raise "
            "--save_interval."
        )


def size_text(size):
    """A number of bytes as text, such as ``1.5 MB``."""
    unit = min(int(math.log(max(size, 1), 1000)), 4)
    return f"{size / 1000**unit:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
