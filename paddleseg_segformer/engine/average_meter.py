"""What a run's last steps took and gave."""

import time


class AverageMeter:
    """Averages of loss, gradient norm and time since the last reading.

    Args:
        batch_size: Images a step, over all processes.
        iters: Where the run ends.
    """

    def __init__(self, batch_size, iters):
        self.batch_size, self.iters = batch_size, iters
        self._clear()
        self.resume()

    def _clear(self):
        self.steps, self.losses, self.norms = 0, [], []
        self.reading = self.total = 0.0

    def resume(self):
        """Start the clock of a step; what was done since the last one ended does not count."""
        self.start = time.perf_counter()

    def batch_ready(self):
        """The step's batch is there."""
        self.reading += time.perf_counter() - self.start

    def step_done(self, losses=None, norm=None):
        """A step has ended: its losses and gradient norm, or nothing if it was skipped."""
        self.steps += 1
        if losses is not None:
            self.losses.append(losses)
            self.norms.append(norm)
        now = time.perf_counter()
        self.total += now - self.start
        self.start = now

    def read(self, iteration):
        """Figures since the last reading, times in seconds; NaN where all steps were skipped."""
        parts = [_mean(column) for column in zip(*self.losses)]
        figures = {
            "loss": sum(parts) if parts else float("nan"),
            "gradient_norm": _mean(self.norms),
            "batch_cost": self.total / self.steps,
            "reader_cost": self.reading / self.steps,
            "ips": self.batch_size * self.steps / self.total,
            "eta": self.total / self.steps * (self.iters - iteration),
        }
        if len(parts) > 1:
            figures.update({f"loss_{i}": part for i, part in enumerate(parts)})
        self._clear()
        return figures


def _mean(values):
    return sum(values) / len(values) if values else float("nan")
