"""Where a run goes on from, and what is no longer as it was there."""

from pathlib import Path

from ..errors import InputError
from ..log import logger
from . import checkpoint, distributed


def find_resume_checkpoint(options):
    """What a run goes on from.

    Args:
        options: ``TrainOptions``.

    Returns:
        Folder and manifest of a whole checkpoint, or None.

    Raises:
        InputError: There is none where one was named, or a new run would take the folder of
            another one.
    """
    save_dir = Path(options.save_dir)
    if options.resume_model is not None:
        return Path(options.resume_model), checkpoint.open_checkpoint(options.resume_model)
    if not options.resume:
        if distributed.rank() == 0 and (there := checkpoint.folders_of_runs(save_dir)):
            raise InputError(
                f"--save_dir {save_dir}: holds {there[-1].name} of an earlier run; go on from it "
                "with --resume, or name another folder."
            )
        return None
    # The first process alone looks: that tidies up after a killed one.
    found = checkpoint.newest(save_dir) if distributed.rank() == 0 else None
    found = distributed.broadcast_object(found)
    if found is None:
        logger.info("%s has no checkpoint to resume from: starting anew", save_dir)
    return found


def choose_seed(options, found):
    """The seed of a run that goes on from ``found``, as ``find_resume_checkpoint`` returned it.

    Raises:
        InputError: Another one is asked for than the run began with.
    """
    if found is None:
        return options.seed or 0
    folder, manifest = found
    if options.seed not in (None, manifest["seed"]):
        raise InputError(
            f"--seed {options.seed}: {folder} was trained with {manifest['seed']}, from which the "
            "order of its samples follows; leave the option out."
        )
    return manifest["seed"]


def differences(before, now):
    """Where two trees of dictionaries and lists differ: (dotted key, value before, value now)."""
    before, now = _flatten(before), _flatten(now)
    keys = sorted({*before, *now})
    return [(k, before.get(k), now.get(k)) for k in keys if before.get(k) != now.get(k)]


def _flatten(tree, prefix=""):
    if not isinstance(tree, (dict, list)):
        return {prefix[:-1]: tree}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for key, value in items:
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
