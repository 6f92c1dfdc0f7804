"""Writing a run's checkpoints; one that cannot be written costs no more than itself."""

from ..errors import RunError
from ..log import logger
from . import checkpoint, distributed


class CheckpointSaver:
    """What the first process writes of a run; in the others its calls write nothing.

    Args:
        save_dir: The run's folder, a ``Path``.
        keep: How many of the run's ``iter_N`` to keep; 0 keeps all.
        facts: What every manifest says.

    Attributes:
        run_name: As ``checkpoint.start_run`` returned it.
        saved: Folder and manifest of the newest ``iter_N``, or None.
    """

    def __init__(self, save_dir, keep, **facts):
        self.save_dir, self.keep, self.facts = save_dir, keep, facts
        self.run_name = self.saved = None
        self._unsaved = {}  # by what could not be written when it last was to be, why

    def save(self, states, progress):
        """Write ``iter_N`` and remove the oldest; where it cannot be written, the run goes on.

        Args:
            states: State dicts by file name.
            progress: What the manifest says of the present moment.
        """
        self.saved = self._write(f"iter_{progress['iteration']}", states, progress)
        if self.saved is not None:
            folder, manifest = self.saved
            checkpoint.remove_old(self.save_dir, self.keep, manifest)
            logger.info("Saved %s", folder)

    def save_best(self, prefix, state, progress):
        """Write ``best_model``, or that of another prefix; all processes learn whether it was."""
        states = {f"{prefix}model.pdparams": state}
        return distributed.broadcast_object(
            self._write(f"{prefix}best_model", states, progress) is not None
        )

    def update(self, progress):
        """Let the newest ``iter_N`` say what happened since, as that it was evaluated."""
        if self.saved is None or distributed.rank() != 0:
            return
        folder, manifest = self.saved
        try:
            checkpoint.write_manifest(folder, {**manifest, **progress})
        except OSError as error:
            logger.warning("%s cannot be written (%s)", folder, error.strerror)

    def raise_unsaved(self):
        """Raise the ``RunError`` of what could not be written when it last was to be."""
        for error in self._unsaved.values():
            raise error

    def _write(self, name, states, progress):
        """Write a checkpoint in the first process: its folder and manifest, or None."""
        if distributed.rank() != 0:
            return None
        kind = name.split("_")[0]  # a later iter_N makes up for an earlier one
        facts = {"run": self.run_name, **self.facts, **progress}
        try:
            manifest = checkpoint.save(self.save_dir / name, states, facts)
        except RunError as error:
            logger.error(error)
            self._unsaved[kind] = error
            return None
        self._unsaved.pop(kind, None)
        return self.save_dir / name, manifest
