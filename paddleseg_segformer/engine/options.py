"""Training options besides the configuration."""

from dataclasses import dataclass
from typing import Optional

import paddle

from ..device import cpus_per_process
from ..errors import InputError

MIN_VALUES = {"grad_accum_steps": 1, "save_interval": 1, "log_iters": 1}
MIN_VALUES |= {"num_workers": 0, "keep_checkpoint_max": 0}
MAX_WORKERS = 1024
CHOICES = {"on_bad_sample": ("error", "skip"), "precision": ("fp32", "fp16", "bf16")}


@dataclass(frozen=True)
class TrainOptions:
    """Training options, named as the flags of ``tools/train.py``.

    Attributes:
        save_dir: The run's folder.
        resume: Whether to resume from the newest intact checkpoint in ``save_dir``, if any.
        resume_model: A checkpoint ``save_dir/iter_N`` to resume from.
        do_eval: Whether to evaluate at each save, and keep the best model.
        use_vdl: Whether to write VisualDL scalars and images to ``save_dir``.
        freeze_backbone: Whether to freeze weights, BatchNorm and stochastic depth of the backbone.
        use_ema: Whether to keep, save and evaluate an exponential moving average of the weights.
        grad_accum_steps: Gradient accumulation: micro-batches per optimizer step.
        num_workers: Data-loading workers of each process; None is 0 on a CPU, and with GPUs the
            CPUs of the machine divided among its processes, 1 to 8.
        on_bad_sample: ``"error"`` or ``"skip"``: stop at an unreadable sample, or replace it.
        save_interval: Iterations between saves; the last iteration is saved as well.
        log_iters: Iterations between log lines.
        keep_checkpoint_max: Number of checkpoints ``iter_N`` to keep; 0 keeps all.
        early_stop_intervals: Number of evaluations in a row without a better mIoU after which
            training stops; None never stops early.
        seed: Random seed of initial weights, order of samples, augmentation, dropout and stochastic
            depth; None is 0, or the checkpoint's.
        precision: ``"fp32"``, or mixed precision ``"fp16"`` or ``"bf16"``, which need a GPU.
        amp_level: Mixed precision level, ``"O1"``.
        deterministic: Whether to use Paddle's deterministic operators on a GPU.
        no_tf32: Whether to compute products of float32 matrices on a GPU without TF32.

    Raises:
        InputError: An option is out of range or not supported, or two exclude each other.
    """

    save_dir: str = "output"
    resume: bool = False
    resume_model: Optional[str] = None
    do_eval: bool = False
    use_vdl: bool = False
    freeze_backbone: bool = False
    use_ema: bool = False
    grad_accum_steps: int = 1
    num_workers: Optional[int] = None
    on_bad_sample: str = "error"
    save_interval: int = 1000
    log_iters: int = 10
    keep_checkpoint_max: int = 5
    early_stop_intervals: Optional[int] = None
    seed: Optional[int] = None
    precision: str = "fp32"
    amp_level: str = "O1"
    deterministic: bool = False
    no_tf32: bool = False

    def __post_init__(self):
        for name, minimum in MIN_VALUES.items():
            if (getattr(self, name) or 0) < minimum:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {minimum}.")
        if (self.num_workers or 0) > MAX_WORKERS:
            raise InputError(f"--num_workers {self.num_workers}: must be at most {MAX_WORKERS}.")
        if self.early_stop_intervals is not None:
            flag = f"--early_stop_intervals {self.early_stop_intervals}"
            if self.early_stop_intervals < 1:
                raise InputError(f"{flag}: must be at least 1.")
            if not self.do_eval:
                raise InputError(f"{flag}: counts evaluations, and there are none; add --do_eval.")
        if not 0 <= (self.seed or 0) < 1 << 63:
            raise InputError(f"--seed {self.seed}: must be from 0 to 2^63 - 1.")
        for name, choices in CHOICES.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"--{name} {value}: must be one of {', '.join(choices)}.")
        if self.resume and self.resume_model is not None:
            raise InputError("--resume and --resume_model exclude each other; give one of them.")
        if self.amp_level != "O1":
            raise InputError(
                f"--amp_level {self.amp_level}: is not supported, because checkpoints, EMA and "
                "resuming read float32 weights from the model, which O2 keeps in half precision; "
                "use O1, which does the same layers' products in half precision."
            )
        on_cpu = paddle.get_device() == "cpu"
        if self.precision != "fp32" and on_cpu:
            raise InputError(f"--precision {self.precision}: needs a GPU; on a CPU use fp32.")
        if self.num_workers is None:
            workers = 0 if on_cpu else min(8, cpus_per_process())
            object.__setattr__(self, "num_workers", workers)
