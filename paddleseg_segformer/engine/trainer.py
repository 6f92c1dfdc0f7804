"""Training a model as a configuration describes it."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
from itertools import chain
from pathlib import Path
from typing import Any

import paddle
from paddleseg.cvlibs import Config
from paddleseg.utils import init_ema_params

from ..config import build, settings
from ..data import class_names, palette
from ..data.validate import first_sample, quick_check
from ..device import versions
from ..errors import InputError, RunError
from ..fs import check_dir_writable, lock_dir
from ..inference import TestConfig
from ..log import eta_text, logger, training_bar
from ..models import MIN_IMAGE_SIZE
from . import checkpoint, distributed, resume
from .average_meter import AverageMeter
from .checkpoint_saver import CheckpointSaver
from .dataloader import BatchReader, TrainSampler, train_batches
from .evaluator import evaluate, log_scores
from .metric_writer import LINES, ExampleImages, MetricWriter
from .optimizer import configure_parameters, group_learning_rates
from .options import TrainOptions
from .signals import StopSignal
from .train_step import TrainStep, out_of_memory_hint, seed_all

# Steps in a row without a finite loss and gradient, after which a run gives up.
MAX_CONSECUTIVE_SKIPS = 10
ABORT_MESSAGE = (
    f"{MAX_CONSECUTIVE_SKIPS} steps in a row had no finite loss and gradient: stopped at iteration "
    "{}. "
    "Look at the images named above, or resume from an earlier checkpoint with a lower learning "
    "rate, a longer warm-up or optimizer.grad_clip_cfg."
)


def train(config: Config, **options: Any) -> float | None:
    """Train.

    Args:
        config: PaddleSeg's ``Config``, from ``load_config``.
        options: Those of ``TrainOptions``.

    Returns:
        The best mIoU; None where there was no evaluation.

    Raises:
        InputError: The configuration, the data or an option is at fault.
        RunError: The run cannot go on, or its last checkpoint could not be saved.
        MemoryError: The device is too small.
        SystemExit: With 128 and the signal's number, after saving, on SIGTERM, SIGINT or SIGHUP.
    """
    options = TrainOptions(**options)
    check_dir_writable(options.save_dir)
    distributed.start()
    alone = distributed.rank() == 0  # the other processes write nothing
    with lock_dir(options.save_dir) if alone else contextlib.nullcontext():
        found = resume.find_resume_checkpoint(options)
        seed = resume.choose_seed(options, found)
        paddle.seed(seed)
        trainer = Trainer(config, options, seed)
        if found is not None:
            trainer.resume(*found)
        trainer.run()
    return trainer.best.get("miou") if options.do_eval else None


class Trainer:
    """A run.

    Attributes:
        iteration: Steps done.
        samples: Training samples seen in them, over all processes: the sampler's position.
        best: The best ``miou`` and its ``iteration``; those of averaged weights with ``ema_``.
        evaluated: The last iteration that was evaluated.
        skipped: How many ``steps`` were left out, and how many ``samples`` replaced.
    """

    # What a checkpoint's manifest says of them is all that resuming needs beside the states.
    PROGRESS = ("iteration", "samples", "best", "evaluated", "skipped", "skipped_in_a_row")

    def __init__(self, config, options, seed):
        self.config, self.options, self.seed = config, options, seed
        self.settings = settings(config)
        self.save_dir = Path(options.save_dir)
        self.iteration = self.samples = self.evaluated = self.skipped_in_a_row = 0
        self.best, self.skipped = {}, {"steps": 0, "samples": 0}
        self.rate, self.before, self.start = None, 0.0, time.monotonic()
        self.first, self.record = 0, None
        self.dataset, model, self.optimizer, losses = build(
            config, "train_dataset", "model", "optimizer", "loss"
        )
        configure_parameters(config, model, options.freeze_backbone)
        self.val_dataset = build(config, "val_dataset")[0] if options.do_eval else None
        self.test_config = TestConfig.from_config(config)
        self._check(model)
        self.ema_model = copy.deepcopy(model) if options.use_ema else None
        if self.ema_model is not None:
            init_ema_params(self.ema_model, model)
            self.ema_model.eval()
        self.step = TrainStep(model, losses, self.optimizer, options, self.ema_model)
        self.model = self.step.model
        self.batch_size = config.batch_size * options.grad_accum_steps * distributed.world_size()
        self.saver = CheckpointSaver(
            self.save_dir,
            options.keep_checkpoint_max,
            seed=seed,
            optimizer=type(self.optimizer).__name__,
            parameters=checkpoint.parameter_names(self.model),
            config=self.settings,
            arrangement=self.arrangement,
            classes=class_names(self.dataset),
            palette=palette(self.dataset).tolist(),
            versions=versions(),
        )

    def _check(self, model):
        options = self.options
        one_size, tolerant = self.config.batch_size > 1, options.on_bad_sample == "skip"
        quick_check(self.dataset, self.val_dataset, one_size, tolerant, MIN_IMAGE_SIZE)
        if self.val_dataset is not None:  # what fails after hours of training fails now
            evaluate(model, first_sample(self.val_dataset), self.test_config)
        saves = math.ceil(self.config.iters / options.save_interval)
        saved = checkpoint.count_saved(self.save_dir) if options.resume else 0
        checkpoint.check_disk_space(
            self.save_dir, model, saves, saved, options.keep_checkpoint_max, options.use_ema
        )

    @property
    def arrangement(self):
        """What of the options and processes changes the result."""
        return {
            "accumulate": self.options.grad_accum_steps,
            "freeze_backbone": self.options.freeze_backbone,
            "use_ema": self.options.use_ema,
            "precision": self.options.precision,
            "processes": distributed.world_size(),
        }

    def resume(self, folder, manifest):
        """Go on from a checkpoint: its folder and manifest."""
        checkpoint.load(folder, manifest, self.model, self.optimizer, self.ema_model)
        self.step.set_scaler_state(manifest["scaler"])
        for name in self.PROGRESS:
            setattr(self, name, manifest[name])
        self.first, self.before = self.iteration, manifest["seconds"]
        if Path(folder).resolve().parent == self.save_dir.resolve():
            self.saver.saved = folder, manifest
        else:  # whose best model is not in this folder
            self.best = {}
        if self.options.resume:
            self.saver.run_name, _ = checkpoint.read_run(self.save_dir)
        logger.info("Resumed from %s at iteration %d", folder, self.iteration)
        before = {**manifest["config"], **manifest["arrangement"]}
        changed = resume.differences(before, {**self.settings, **self.arrangement})
        for key, was, is_now in changed:
            logger.warning("Not as in the checkpoint: %s is %s, was %s", key, is_now, was)
        if any(key.startswith("lr_scheduler.") or key == "iters" for key, *_ in changed):
            self.step.refresh_rate()

    def run(self):
        """Train from the present iteration to the configuration's last."""
        if distributed.rank() == 0:
            self._open_record()
        logger.info(
            "Training %s on %d images, %d a step, from iteration %d to %d, into %s",
            type(self.model).__name__,
            len(self.dataset),
            self.batch_size,
            self.iteration,
            self.config.iters,
            self.save_dir,
        )
        with StopSignal() as stop:
            try:
                with training_bar(self.config.iters, self.iteration) as bar:
                    if self._at_save_point() and self.evaluated != self.iteration:
                        self.evaluate(stop)  # a run that was stopped had saved, but not evaluated
                    self._iterate(stop, bar)
            finally:  # by when a launcher repeats its signal
                if self.record is not None:
                    self.record.close()
        self._sum_up()
        self.saver.raise_unsaved()

    def _open_record(self):
        try:
            if self.saver.run_name is None:
                origin = self.options.resume_model
                self.saver.run_name = checkpoint.start_run(self.save_dir, origin)
            self.record = MetricWriter(
                self.save_dir, self.iteration, self.evaluated, self.options.use_vdl
            )
        except OSError as error:
            raise RunError(
                f"--save_dir {self.save_dir}: cannot be written to ({error.strerror})."
            ) from error

    def _at_save_point(self):
        at_interval = self.iteration % self.options.save_interval == 0
        return self.iteration > 0 and (at_interval or self._at_the_end())

    def _batches(self):
        """Yield the parts of each step to come, a list of ``Batch``."""
        read = BatchReader(self.dataset, self.seed, self.options.on_bad_sample == "skip")
        parts = self.options.grad_accum_steps
        sampler = TrainSampler(
            len(self.dataset),
            self.config.batch_size,
            parts,
            self.samples,
            self.config.iters - self.iteration,
            self.seed,
        )
        batches = train_batches(read, sampler, self.options.num_workers)
        yield from iter(lambda: [batch for _, batch in zip(range(parts), batches)], [])

    def _iterate(self, stop, bar):
        meter = AverageMeter(self.batch_size, self.config.iters)
        batches = self._batches()
        try:
            while self.iteration < self.config.iters:
                parts = self._next_parts(batches, stop)
                meter.batch_ready()
                self._step(parts, meter)
                bar.update()
                if self.iteration % self.options.log_iters == 0 or self._at_the_end():
                    self.log(meter, bar)
                if self.skipped_in_a_row >= MAX_CONSECUTIVE_SKIPS:
                    raise RunError(ABORT_MESSAGE.format(self.iteration))
                if self._at_save_point():
                    self.save()
                    self.evaluate(stop)
                    meter.resume()
        except Exception:
            self._save_progress()
            raise
        finally:
            batches.close()  # the traceback, which a notebook keeps, would keep the data processes

    def _save_progress(self):
        """Save, unless there is nothing that is not saved."""
        if self.iteration > self.first and not self._at_save_point():
            self.save()

    def _at_the_end(self):
        return self.iteration == self.config.iters

    def _next_parts(self, batches, stop):
        """The next step's batches, unless a process cannot have any, or is to end: then all do."""
        parts, error = [], None
        try:
            parts = next(batches)
        except (InputError, RunError) as caught:
            error = caught
        problems = [problem for part in parts for problem in part.problems]
        failed, stopped, replaced = distributed.any_process([error, stop.requested, problems])
        if replaced:
            for problem in chain.from_iterable(distributed.gather(problems)):
                self._note_skip("samples", "replaced_sample", f"Replaced a sample: {problem}")
        if failed:
            raise error or RunError("Another process has failed: its log says why.")
        if stopped:
            self._save_progress()
            self._terminate(stop)
        return parts

    def _step(self, parts, meter):
        iteration = self.iteration + 1
        seed_all(self.seed, iteration)
        self.rate = self.optimizer.get_lr()
        arrays = [part.arrays for part in parts]
        with out_of_memory_hint(arrays[0]["img"].shape, len(parts), self.model):
            outcome = self.step(arrays, iteration)
        self.iteration = iteration
        self.samples += self.batch_size
        if outcome.skipped is None:
            self.skipped_in_a_row = 0
            meter.step_done(outcome.losses, outcome.norm)
            return
        self.skipped_in_a_row += 1
        meter.step_done()
        files = [file for part in parts for file in part.files]
        bad_samples = distributed.gather([files[i] for i in outcome.bad_samples])
        bad_samples = ", ".join(chain.from_iterable(bad_samples))
        text = f"Skipped step {iteration}: {outcome.skipped}, with {bad_samples}"
        self._note_skip("steps", "skipped_step", text)

    def _note_skip(self, what, kind, text):
        self.skipped[what] += 1
        logger.warning(text)
        if self.record is not None:
            self.record.line(kind, self.iteration, text=text)

    def _terminate(self, stop):
        """End the process, saved as it is, as the signal wanted that it or another one got."""
        self.saver.raise_unsaved()
        stop.requested = stop.requested or signal.SIGTERM
        logger.info(
            "%s: saved at iteration %d; --resume goes on from there"
            if self.iteration > self.first
            else "%s: stopped at iteration %d, before the first step",
            signal.Signals(stop.requested).name,
            self.iteration,
        )
        raise SystemExit(stop.exit_code)

    def log(self, meter, bar):
        """One line, or the bar's; and the record's figures."""
        figures = meter.read(self.iteration)
        rates = group_learning_rates(self.config, self.rate)
        if self.record is not None:
            self.record.training(self.iteration, figures, rates)
        if not bar.disable:
            text = f"loss {figures['loss']:.4f}, lr {self.rate:.3g}, {figures['ips']:.2f} images/s"
            bar.set_postfix_str(text)
            return
        logger.info(
            "[TRAIN] epoch: %d, iter: %d/%d, loss: %.4f, lr: %.6g, batch_cost: %.4f, "
            "reader_cost: %.4f, ips: %.2f images/s | ETA %s",
            (self.samples - 1) // len(self.dataset) + 1,
            self.iteration,
            self.config.iters,
            figures["loss"],
            self.rate,
            figures["batch_cost"],
            figures["reader_cost"],
            figures["ips"],
            eta_text(figures["eta"]),
        )

    def evaluate(self, stop):
        """Score the model, and the averaged one; remember and save the best."""
        if self.val_dataset is None:
            return
        try:
            self._evaluate("", self.model, stop)
            if self.ema_model is not None:
                self._evaluate("ema_", self.ema_model, stop)
        except SystemExit:
            logger.info("Stopped in evaluation; --resume begins with it")
            raise
        self.evaluated = self.iteration
        self.saver.update(self._progress())
        if "miou" in self.best:
            logger.info(
                "[EVAL] The best mIoU so far is %.4f, at iteration %d, in %s",
                self.best["miou"],
                self.best["iteration"],
                self.save_dir / "best_model",
            )

    def _evaluate(self, prefix, model, stop):
        distributed.broadcast_batch_norm_stats(model)
        examples = ExampleImages(self.val_dataset)
        with stop.ends_at_once():  # the checkpoint is written
            scores = evaluate(model, self.val_dataset, self.test_config, observe=examples)
        log_scores(scores, len(self.val_dataset), "EMA " if prefix else "")
        if self.record is not None:
            self.record.evaluation(self.iteration, scores, prefix)
            self.record.examples(self.iteration, examples.rows)
        if scores.miou <= self.best.get(f"{prefix}miou", -1.0):
            return
        before = self.best
        best = {f"{prefix}miou": scores.miou, f"{prefix}iteration": self.iteration}
        self.best = {**before, **best}
        if not self.saver.save_best(prefix, model.state_dict(), self._progress()):
            self.best = before

    def save(self):
        """Write ``iter_N``, and remove the oldest; where it cannot be written, the run goes on."""
        states = {
            checkpoint.MODEL: self.model.state_dict(),
            checkpoint.OPTIMIZER: self.optimizer.state_dict(),
        }
        if self.ema_model is not None:
            states[checkpoint.EMA] = self.ema_model.state_dict()
        self.saver.save(states, self._progress())

    def _progress(self):
        progress = {name: getattr(self, name) for name in self.PROGRESS}
        return {**progress, "seconds": self._seconds(), "scaler": self.step.scaler_state()}

    def _seconds(self):
        return self.before + time.monotonic() - self.start

    def _sum_up(self):
        logger.info("Done: %d iterations in %s", self.iteration, eta_text(self._seconds()))
        for prefix, of in (("", ""), ("ema_", " of the averaged model")):
            if f"{prefix}miou" in self.best:
                logger.info(
                    "Best mIoU%s %.4f at iteration %d: %s",
                    of,
                    self.best[f"{prefix}miou"],
                    self.best[f"{prefix}iteration"],
                    self.save_dir / f"{prefix}best_model",
                )
        if any(self.skipped.values()):
            logger.warning(
                "Left out: %d steps without a finite loss and gradient, %d samples that could not "
                "be read; %s names them",
                self.skipped["steps"],
                self.skipped["samples"],
                self.save_dir / LINES,
            )
