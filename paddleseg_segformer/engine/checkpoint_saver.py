"""Saving the checkpoints and best models of a run."""

from ..errors import RunError
from ..log import log_write_error, logger
from . import checkpoint, distributed
from .run_dir import prune_checkpoints


class CheckpointSaver:
    """Saves checkpoints and best models; only the first process writes.

    A checkpoint that cannot be written is logged as an error, and training continues.

    Args:
        save_dir: The run's folder, a ``Path``.
        keep: Number of ``iter_N`` to keep; 0 keeps all.
        step: ``TrainStep``, which has the model, the optimizer and the EMA model.
        state: The run's ``TrainerState``; ``save_best`` updates its ``best``.
        metadata: Constant entries of the manifests.
    """

    def __init__(self, save_dir, keep, step, state, metadata):
        self.save_dir, self.keep, self.step = save_dir, keep, step
        self.state, self.metadata = state, metadata
        self.newest = None  # folder and manifest of the newest iter_N
        self._errors = {}  # "iter", "best" or "ema": why the last attempt to save it failed

    def save(self):
        """Write ``iter_N`` and remove checkpoints that are not to be kept."""
        states = {
            checkpoint.MODEL: self.step.model.state_dict(),
            checkpoint.OPTIMIZER: self.step.optimizer.state_dict(),
        }
        if self.step.ema_model is not None:
            states[checkpoint.EMA] = self.step.ema_model.state_dict()
        self.newest = self._write(f"iter_{self.state.iteration}", states)
        if self.newest is not None:
            prune_checkpoints(self.save_dir, self.keep, self.newest[1])
            logger.info("Saved %s", self.newest[0])

    def save_best(self, prefix, model, miou):
        """Write ``best_model`` (``prefix`` "") or ``ema_best_model`` ("ema_") if mIoU improved.

        Returns:
            Whether it improved.
        """
        best = self.state.best
        if not miou > best.get(f"{prefix}miou", -1.0):  # so that NaN does not count
            return False
        new = {f"{prefix}miou": miou, f"{prefix}iteration": self.state.iteration}
        self.state.best = {**best, **new}
        states = {f"{prefix}{checkpoint.MODEL}": model.state_dict()}
        written = self._write(f"{prefix}best_model", states)
        if not distributed.broadcast_object(written is not None):
            self.state.best = best
        return True

    def update_manifest(self):
        """Write the present ``TrainerState`` into the newest ``iter_N``."""
        if self.newest is None or distributed.rank() != 0:
            return
        folder, manifest = self.newest
        with log_write_error(folder):
            checkpoint.write_manifest(folder, {**manifest, **self._progress()})

    def raise_errors(self):
        """Raise the ``RunError`` of the last checkpoint or best model if it could not be saved."""
        for error in self._errors.values():
            raise error

    def _progress(self):
        return {**self.state.to_manifest(), "scaler": self.step.scaler_state()}

    def _write(self, name, states):
        """Write a checkpoint in the first process; returns folder and manifest, or None."""
        if distributed.rank() != 0:
            return None
        kind, folder = name.split("_")[0], self.save_dir / name
        self._errors.pop(kind, None)  # a later iter_N makes up for an earlier one
        try:
            return folder, checkpoint.save(folder, states, {**self.metadata, **self._progress()})
        except RunError as error:
            logger.error(error)
            self._errors[kind] = error
            return None
