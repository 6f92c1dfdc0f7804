"""Learning rate schedule of the paper's training."""

from paddle.optimizer.lr import LRScheduler


class WarmupPolynomialDecay(LRScheduler):
    """Polynomial decay from the first iteration, multiplied by a linear warm-up factor.

    With base rate b, run length T, power p, end rate e, warm-up w and r = warmup_start_lr / b,

        lr(t) = (e + (b - e) (1 - t / T)^p) * (1 - (1 - t / w) (1 - r) if t < w else 1).

    In PaddleSeg's ``PolynomialDecay`` with warm-up, the decay starts after the warm-up instead. The
    paper has p = 1, e = 0, w = 1500 and r = 1e-6.

    Args:
        learning_rate: b.
        decay_steps: T; a config's default is ``iters``.
        power: p, at least 0.
        end_lr: e.
        warmup_iters: w; 0 for none.
        warmup_start_lr: Rate at t = 0; default: 1e-6 b.
        last_epoch: t - 1 at the start, as in Paddle's schedules.

    Raises:
        ValueError: The power is below 0: the rate would become infinite.
    """

    def __init__(
        self,
        learning_rate,
        decay_steps,
        power=1.0,
        end_lr=0.0,
        warmup_iters=0,
        warmup_start_lr=None,
        last_epoch=-1,
    ):
        if power < 0:
            raise ValueError(f"power must be at least 0, not {power}")
        self.decay_steps, self.power, self.end_lr = decay_steps, power, end_lr
        self.warmup_iters = warmup_iters
        self.warmup_ratio = 1e-6 if warmup_start_lr is None else warmup_start_lr / learning_rate
        super().__init__(learning_rate, last_epoch)

    def get_lr(self):
        """The learning rate at iteration ``last_epoch``."""
        t = min(self.last_epoch, self.decay_steps)
        decay = (1 - t / self.decay_steps) ** self.power
        lr = self.end_lr + (self.base_lr - self.end_lr) * decay
        if t < self.warmup_iters:
            lr *= 1 - (1 - t / self.warmup_iters) * (1 - self.warmup_ratio)
        return lr
