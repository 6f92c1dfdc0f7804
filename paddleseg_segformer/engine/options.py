"""What a run is asked for beside its configuration."""

from dataclasses import dataclass
from typing import Optional

import paddle

from ..device import available_cpus
from ..errors import InputError

MIN_VALUES = {"grad_accum_steps": 1, "save_interval": 1, "log_iters": 1}
MIN_VALUES |= {"num_workers": 0, "keep_checkpoint_max": 0}
CHOICES = {"on_bad_sample": ("error", "skip"), "precision": ("fp32", "fp16", "bf16")}


@dataclass(frozen=True)
class TrainOptions:
    """How to train.

    Attributes:
        save_dir: The run's folder.
        resume: Whether to go on from the newest whole checkpoint in ``save_dir``, if there is one.
        resume_model: A checkpoint ``save_dir/iter_N`` to go on from.
        do_eval: Whether to evaluate at each save, and keep the best model.
        use_vdl: Whether to write VisualDL's scalars and pictures into ``save_dir``.
        freeze_backbone: Whether the backbone stays as it is: no gradients, no dropped paths, fixed
            statistics of BatchNorm.
        use_ema: Whether to keep, save and evaluate an exponential average of the weights too.
        grad_accum_steps: Gradient accumulation steps: micro-batches per optimizer step.
        num_workers: Processes that prepare batches; None takes none on a CPU, where the model
            needs the cores, and up to 8 beside a GPU.
        on_bad_sample: ``"error"`` or ``"skip"``: what a training sample that cannot be read does.
        save_interval: Iterations between saves; the last iteration is saved as well.
        log_iters: Iterations between log lines.
        keep_checkpoint_max: How many ``iter_N`` to keep; 0 keeps all.
        seed: Of initial weights, order of samples, augmentation and dropped paths; None takes 0,
            or that of the checkpoint.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``; the latter two on a GPU.
        amp_level: Paddle's ``"O1"``, of the lower precisions; ``"O2"`` is not supported.

    Raises:
        InputError: Two options exclude each other, or this machine cannot do what one asks for.
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
    seed: Optional[int] = None
    precision: str = "fp32"
    amp_level: str = "O1"

    def __post_init__(self):
        for name, least in MIN_VALUES.items():
            if (getattr(self, name) or 0) < least:
                raise InputError(f"--{name} {getattr(self, name)}: must be at least {least}.")
        if not 0 <= (self.seed or 0) < 1 << 63:
            raise InputError(f"--seed {self.seed}: must be from 0 to 2^63 - 1.")
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise InputError(
                    f"--{name} {getattr(self, name)}: must be one of {', '.join(known)}."
                )
        if self.resume and self.resume_model is not None:
            raise InputError("--resume and --resume_model exclude each other; give one of them.")
        if self.amp_level != "O1":
            raise InputError(f"--amp_level {self.amp_level}: is not supported; use O1.")
        on_cpu = paddle.get_device() == "cpu"
        if self.precision != "fp32" and on_cpu:
            raise InputError(f"--precision {self.precision}: needs a GPU; on a CPU use fp32.")
        if self.num_workers is None:
            workers = 0 if on_cpu else min(8, available_cpus())
            object.__setattr__(self, "num_workers", workers)
