"""Progress of a training run, as stored in each checkpoint's manifest."""

import time
from dataclasses import asdict, dataclass, field, fields


@dataclass
class TrainerState:
    """What resuming needs besides the state dicts and the seed.

    Attributes:
        iteration: Number of optimizer steps so far, skipped ones included.
        samples: Number of training samples in them, over all processes: the sampler's position.
        best: Best ``miou`` and its ``iteration``; those of the EMA model are prefixed ``ema_``.
        evaluated: Iteration of the last evaluation.
        skipped: Number of skipped ``steps``, and of ``samples`` that were replaced.
        skipped_in_a_row: Number of skipped steps since the last one that was not.
        seconds: Training time up to the checkpoint that was resumed from.
    """

    iteration: int = 0
    samples: int = 0
    best: dict = field(default_factory=dict)
    evaluated: int = 0
    skipped: dict = field(default_factory=lambda: {"steps": 0, "samples": 0})
    skipped_in_a_row: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        self._start = time.monotonic()

    def total_seconds(self):
        """Training time so far, that before resuming included."""
        return self.seconds + time.monotonic() - self._start

    def to_manifest(self):
        """The manifest's entries."""
        return {**asdict(self), "seconds": self.total_seconds()}

    def restore(self, manifest):
        """Set all attributes from a manifest."""
        for attribute in fields(self):
            setattr(self, attribute.name, manifest[attribute.name])
