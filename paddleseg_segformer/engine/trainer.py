"""Training a model as a configuration describes it."""

import copy
import signal
import time
from pathlib import Path

import paddle
from paddleseg.core.train import loss_computation
from paddleseg.utils import init_ema_params, update_ema_model

from ..config import build
from ..deploy import Protocol
from ..errors import InputError
from ..models import SegFormer
from ..runtime import available_cpus
from . import checkpoint, distributed
from .evaluator import evaluate, log_scores
from .loader import train_batches
from .log import eta_text, logger
from .optimizer import log_parameter_groups

EXIT_TERMINATED = 143


def train(
    config,
    save_dir="output",
    resume_model=None,
    do_eval=False,
    use_vdl=False,
    use_ema=False,
    num_workers=None,
    save_interval=1000,
    log_iters=10,
    keep_checkpoint_max=5,
    seed=0,
    precision="fp32",
    amp_level="O1",
):
    """Train.

    Args:
        config: PaddleSeg's ``Config``, from ``load_config``.
        save_dir: The run's folder.
        resume_model: A checkpoint ``save_dir/iter_N`` to go on from.
        do_eval: Whether to evaluate at each save, and keep the best model.
        use_vdl: Whether to write VisualDL's scalars into ``save_dir``.
        use_ema: Whether to keep, save and evaluate an exponential average of the weights too.
        num_workers: Processes that prepare batches; None takes none on a CPU, where the model
            needs the cores, and up to 8 beside a GPU.
        save_interval: Iterations between saves; the last iteration is saved as well.
        log_iters: Iterations between log lines.
        keep_checkpoint_max: How many ``iter_N`` to keep; 0 keeps all.
        seed: Of initial weights, order of samples and augmentation.
        precision: ``"fp32"``, ``"fp16"`` or ``"bf16"``; the latter two on a GPU.
        amp_level: Paddle's ``"O1"``, of the lower precisions; ``"O2"`` is not supported.

    Returns:
        The best mIoU; None without ``do_eval``.

    Raises:
        InputError: The configuration, the data or an argument is at fault.
        SystemExit: With 143, after saving, on SIGTERM.
    """
    if amp_level != "O1":
        raise InputError(f"--amp_level {amp_level}: is not supported; use O1.")
    on_cpu = paddle.get_device() == "cpu"
    if precision != "fp32" and on_cpu:
        raise InputError(f"--precision {precision}: needs a GPU; on a CPU use fp32.")
    if num_workers is None:
        num_workers = 0 if on_cpu else min(8, available_cpus())
    _check_folder(save_dir)
    distributed.start()
    paddle.seed(seed)
    trainer = Trainer(config, save_dir, do_eval, use_ema, use_vdl, precision)
    if resume_model is not None:
        trainer.resume(resume_model)
    paddle.seed(seed + distributed.rank())  # each process drops other samples and channels
    trainer.run(seed, num_workers, log_iters, save_interval, keep_checkpoint_max)
    return trainer.best["miou"] if do_eval else None


def _check_folder(save_dir):
    try:
        Path(save_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--save_dir {save_dir}: is no folder ({error.strerror}).") from error


class Trainer:
    """The state of a run: model, optimizer, iteration, best score."""

    def __init__(self, config, save_dir, do_eval, use_ema, use_vdl, precision):
        self.config, self.save_dir = config, Path(save_dir)
        self.iteration, self.lr, self.best = 0, None, {"miou": -1.0, "iteration": -1}
        self.dataset, self.model, self.optimizer, self.losses = build(
            config, "train_dataset", "model", "optimizer", "loss"
        )
        log_parameter_groups(config, self.model)
        if isinstance(self.model, SegFormer):
            self.model.leave_resizing_to(self.losses["types"])
        self.val_dataset = build(config, "val_dataset")[0] if do_eval else None
        self.protocol = Protocol.of_config(config)
        self.ema_model = copy.deepcopy(self.model) if use_ema else None
        if use_ema:
            init_ema_params(self.ema_model, self.model)
            self.ema_model.eval()
        self.amp = {"enable": precision != "fp32", "level": "O1"}
        self.amp["dtype"] = "bfloat16" if precision == "bf16" else "float16"
        self.scaler = paddle.amp.GradScaler(enable=precision == "fp16")
        self.parallel_model = self.model
        if distributed.world_size() > 1:
            if paddle.get_device() != "cpu":  # synchronised BatchNorm has no CPU kernel
                self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self.parallel_model = paddle.DataParallel(self.model)
        self.writer = None
        if use_vdl and distributed.rank() == 0:
            from visualdl import LogWriter  # a second to import, of use to few runs

            self.writer = LogWriter(str(self.save_dir))

    def resume(self, folder):
        """Go on from a checkpoint folder."""
        progress = checkpoint.load(folder, self.model, self.optimizer, self.ema_model)
        self.iteration, self.best = progress["iteration"], progress["best"]
        logger.info("Resumed from %s at iteration %d", folder, self.iteration)

    def run(self, seed, num_workers, log_iters, save_interval, keep_checkpoint_max):
        """Train from the present iteration to the configuration's last."""
        iters, batch_size = self.config.iters, self.config.batch_size
        batches = train_batches(self.dataset, batch_size, self.iteration, iters, seed, num_workers)
        meter = _Meter(batch_size * distributed.world_size(), iters)
        logger.info(
            "Training %s on %d images, %d a step, from iteration %d to %d, into %s",
            type(self.model).__name__,
            len(self.dataset),
            meter.batch_size,
            self.iteration,
            iters,
            self.save_dir,
        )
        self.model.train()
        with _StopSignal() as stop:
            for batch in batches:
                self._iterate(batch, meter, stop, log_iters, save_interval, keep_checkpoint_max)
        if self.writer is not None:
            self.writer.close()

    def _iterate(self, batch, meter, stop, log_iters, save_interval, keep_checkpoint_max):
        meter.batch_ready()
        losses = self.step(batch)
        self.iteration += 1
        meter.step_done(losses)
        last = self.iteration == meter.iters
        if self.iteration % log_iters == 0 or last:
            self.log(meter)
        if self.iteration % save_interval == 0 or last or stop.requested:
            if self.val_dataset is not None and not stop.requested:
                self.evaluate()
            self.save(keep_checkpoint_max)
            meter.resume()
        if stop.requested:
            logger.info("Terminated; saved at iteration %d", self.iteration)
            raise SystemExit(EXIT_TERMINATED)

    def step(self, batch):
        """One step of the optimizer; returns the losses as floats."""
        with paddle.amp.auto_cast(**self.amp):
            outputs = self.parallel_model(batch["img"])
            losses = self.compute_losses(outputs, batch)
            loss = sum(losses)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.clear_grad(set_to_zero=False)
        self.lr = self.optimizer.get_lr()
        schedule = self.optimizer._learning_rate
        if isinstance(schedule, paddle.optimizer.lr.LRScheduler):
            schedule.step()
        if self.ema_model is not None:
            update_ema_model(self.ema_model, self.model, step=self.iteration + 1)
        return [float(part) for part in losses]

    def compute_losses(self, outputs, batch):
        """The weighted losses of a model's outputs, as PaddleSeg's training defines them."""
        if hasattr(self.model, "loss_computation"):
            return self.model.loss_computation(outputs, self.losses, batch)
        labels = batch["label"].astype("int64")
        edges = batch["edge"].astype("int64") if "edge" in batch else None
        return loss_computation(outputs, labels, edges, self.losses)

    def log(self, meter):
        """One line, and the scalars of VisualDL."""
        epoch = (self.iteration * meter.batch_size - 1) // len(self.dataset) + 1
        figures = meter.read(self.iteration)
        logger.info(
            "[TRAIN] epoch: %d, iter: %d/%d, loss: %.4f, lr: %.6g, batch_cost: %.4f, "
            "reader_cost: %.4f, ips: %.2f images/s | ETA %s",
            epoch,
            self.iteration,
            meter.iters,
            figures["loss"],
            self.lr,
            figures["batch_cost"],
            figures["reader_cost"],
            figures["ips"],
            eta_text(figures["eta"]),
        )
        self.write_scalars("Train", {"lr": self.lr, **figures})

    def evaluate(self):
        """Score the model, and the averaged one; remember and save the best."""
        distributed.share_statistics(self.model)
        models = {"": self.model}
        if self.ema_model is not None:
            distributed.share_statistics(self.ema_model)
            models["ema_"] = self.ema_model
        for prefix, model in models.items():
            scores = evaluate(model, self.val_dataset, self.protocol)
            log_scores(scores, len(self.val_dataset), "EMA " if prefix else "")
            self.write_scalars(
                "Evaluate", {f"{prefix}mIoU": scores.miou, f"{prefix}Acc": scores.accuracy}
            )
            if scores.miou <= self.best.get(f"{prefix}miou", -1.0):
                continue
            self.best[f"{prefix}miou"] = scores.miou
            self.best[f"{prefix}iteration"] = self.iteration
            if distributed.rank() == 0:
                checkpoint.save(
                    self.save_dir / f"{prefix}best_model",
                    {f"{prefix}model.pdparams": model.state_dict()},
                    self.progress(),
                )
        logger.info(
            "[EVAL] The best mIoU so far is %.4f, at iteration %d, in %s",
            self.best["miou"],
            self.best["iteration"],
            self.save_dir / "best_model",
        )

    def progress(self):
        """What resuming needs beside the state dicts."""
        names = checkpoint.parameter_names(self.model)
        return {"iteration": self.iteration, "best": self.best, "parameters": names}

    def save(self, keep):
        """Write ``iter_N``, and remove checkpoints beyond the newest ``keep``."""
        if distributed.rank() != 0:
            return
        states = {
            checkpoint.MODEL: self.model.state_dict(),
            checkpoint.OPTIMIZER: self.optimizer.state_dict(),
        }
        if self.ema_model is not None:
            states[checkpoint.EMA] = self.ema_model.state_dict()
        folder = self.save_dir / f"iter_{self.iteration}"
        checkpoint.save(folder, states, self.progress())
        checkpoint.remove_old(self.save_dir, keep, self.iteration)
        logger.info("Saved %s", folder)

    def write_scalars(self, group, figures):
        """Hand figures to VisualDL, where it is in use."""
        for name, value in figures.items() if self.writer is not None else ():
            self.writer.add_scalar(f"{group}/{name}", value, self.iteration)


class _StopSignal:
    """Whether SIGTERM has asked the process to end, since ``with`` took it over."""

    def __init__(self):
        self.requested = False

    def __enter__(self):
        self._before = signal.signal(signal.SIGTERM, self._request)
        return self

    def __exit__(self, *_):
        signal.signal(signal.SIGTERM, self._before)

    def _request(self, *_):
        self.requested = True


class _Meter:
    """Averages of loss and time since the last log line."""

    def __init__(self, batch_size, iters):
        self.batch_size, self.iters = batch_size, iters
        self._clear()
        self.resume()

    def _clear(self):
        self.losses, self.reading, self.total = [], 0.0, 0.0

    def resume(self):
        """Start the clock of a step; what was done since the last one ended does not count."""
        self.start = time.perf_counter()

    def batch_ready(self):
        self.reading += time.perf_counter() - self.start

    def step_done(self, losses):
        self.losses.append(losses)
        now = time.perf_counter()
        self.total += now - self.start
        self.start = now

    def read(self, iteration):
        """Figures since the last reading; times in seconds."""
        steps = len(self.losses)
        parts = [sum(column) / steps for column in zip(*self.losses)]
        figures = {
            "loss": sum(parts),
            "batch_cost": self.total / steps,
            "reader_cost": self.reading / steps,
            "ips": self.batch_size * steps / self.total,
            "eta": self.total / steps * (self.iters - iteration),
        }
        if len(parts) > 1:
            figures.update({f"loss_{i}": part for i, part in enumerate(parts)})
        self._clear()
        return figures
