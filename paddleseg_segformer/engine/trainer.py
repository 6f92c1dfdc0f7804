"""Training a model as a configuration describes it."""

import contextlib
import copy
import math
import platform
import signal
import sys
import time
from importlib import metadata
from pathlib import Path

import paddle
from paddleseg.utils import init_ema_params
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..config import build
from ..deploy import Protocol
from ..errors import InputError, RunError
from . import checkpoint, distributed, preflight
from .evaluator import evaluate, log_scores
from .loader import SampleReader, TrainSampler, train_batches
from .log import eta_text, logger
from .meter import Meter
from .optimizer import group_rates, log_parameter_groups
from .options import TrainOptions
from .record import CURVES, LINES, Record
from .signals import StopSignal
from .step import Stepper, memory_advice, seed_generators

# Steps in a row without a finite loss and gradient, after which a run gives up.
MOST_SKIPPED = 10
GIVING_UP = (
    f"{MOST_SKIPPED} steps in a row had no finite loss and gradient; the run is saved at "
    "iteration {}. Look at the images named above, or resume from an earlier checkpoint with a "
    "lower learning rate, a longer warm-up or optimizer.grad_clip_cfg."
)
PACKAGES = ("paddlepaddle", "paddlepaddle-gpu", "paddleseg", "paddleseg-segformer", "numpy")


def train(config, **options):
    """Train.

    Args:
        config: PaddleSeg's ``Config``, from ``load_config``.
        options: Those of ``TrainOptions``.

    Returns:
        The best mIoU; None without ``do_eval``.

    Raises:
        InputError: The configuration, the data or an option is at fault.
        RunError: The run cannot go on, or its last checkpoint could not be saved.
        SystemExit: With 143 or 130, after saving, on SIGTERM or SIGINT.
    """
    options = TrainOptions(**options)
    preflight.check_folder(options.save_dir)
    distributed.start()
    found = _find_checkpoint(options)
    seed = _choose_seed(options, found)
    paddle.seed(seed)
    trainer = Trainer(config, options, seed)
    if found is not None:
        trainer.resume(*found)
    trainer.run()
    return trainer.best["miou"] if options.do_eval else None


def _find_checkpoint(options):
    """Folder and manifest of what to go on from, or None."""
    if options.resume_model is not None:
        return Path(options.resume_model), checkpoint.open_checkpoint(options.resume_model)
    if not options.resume:
        return None
    # The first process alone looks: that tidies up after a killed one.
    found = checkpoint.newest(options.save_dir) if distributed.rank() == 0 else None
    found = distributed.from_first(found)
    if found is None:
        logger.info("%s has no checkpoint to resume from: starting anew", options.save_dir)
    return found


def _choose_seed(options, found):
    if found is None:
        return options.seed or 0
    folder, manifest = found
    if options.seed not in (None, manifest["seed"]):
        raise InputError(
            f"--seed {options.seed}: {folder} was trained with {manifest['seed']}, from which the "
            "order of its samples follows; leave the option out."
        )
    return manifest["seed"]


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
        self.settings = _flatten(config.dic)  # now, since building parts adds to them
        self.save_dir = Path(options.save_dir)
        self.iteration = self.samples = self.evaluated = self.skipped_in_a_row = 0
        self.best, self.skipped = {"miou": -1.0, "iteration": -1}, {"steps": 0, "samples": 0}
        self.rate, self.before, self.start = None, 0.0, time.monotonic()
        self.run_name = self.saved = self.unsaved = self.record = None
        self.dataset, model, self.optimizer, losses = build(
            config, "train_dataset", "model", "optimizer", "loss"
        )
        log_parameter_groups(config, model)
        self.val_dataset = build(config, "val_dataset")[0] if options.do_eval else None
        self.protocol = Protocol.of_config(config)
        self._check(model)
        self.ema_model = copy.deepcopy(model) if options.use_ema else None
        if self.ema_model is not None:
            init_ema_params(self.ema_model, model)
            self.ema_model.eval()
        self.step = Stepper(model, losses, self.optimizer, options, self.ema_model)
        self.model = self.step.model
        self.batch_size = config.batch_size * options.accumulate * distributed.world_size()

    def _check(self, model):
        options = self.options
        tolerant = options.on_bad_sample == "skip"
        preflight.check_datasets(self.dataset, self.val_dataset, tolerant)
        saves = math.ceil(self.config.iters / options.save_interval)
        preflight.check_space(
            self.save_dir, model, saves, options.keep_checkpoint_max, options.use_ema
        )

    def resume(self, folder, manifest):
        """Go on from a checkpoint: its folder and manifest."""
        checkpoint.load(folder, manifest, self.model, self.optimizer, self.ema_model)
        self.step.set_scaler_state(manifest["scaler"])
        for name in self.PROGRESS:
            setattr(self, name, manifest[name])
        self.before = manifest["seconds"]
        if self.options.resume:
            self.run_name, self.saved = manifest["run"], (folder, manifest)
        logger.info("Resumed from %s at iteration %d", folder, self.iteration)
        for key in sorted({*self.settings, *manifest["config"]}):
            before, now = (settings.get(key) for settings in (manifest["config"], self.settings))
            if before != now:
                logger.warning("Not as in the checkpoint: %s is %s, was %s", key, now, before)

    def run(self):
        """Train from the present iteration to the configuration's last."""
        if distributed.rank() == 0:
            if self.run_name is None:
                self.run_name = checkpoint.start_run(self.save_dir, self.options.resume_model)
            self.record = Record(self.save_dir, self.iteration, self.options.use_vdl)
        logger.info(
            "Training %s on %d images, %d a step, from iteration %d to %d, into %s",
            type(self.model).__name__,
            len(self.dataset),
            self.batch_size,
            self.iteration,
            self.config.iters,
            self.save_dir,
        )
        with StopSignal() as stop, logging_redirect_tqdm([logger]), self._progress_bar() as bar:
            if self._at_save_point() and self.evaluated != self.iteration:
                self.evaluate(stop)  # a run that was stopped had saved, but not evaluated
            self.model.train()
            self._iterate(stop, bar)
        if self.record is not None:
            self.record.close()
        self._sum_up()
        if self.unsaved is not None:
            raise self.unsaved

    def _progress_bar(self):
        return tqdm(
            desc="train",
            total=self.config.iters,
            initial=self.iteration,
            disable=distributed.rank() != 0 or not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def _at_save_point(self):
        at_interval = self.iteration % self.options.save_interval == 0
        return self.iteration > 0 and (at_interval or self.iteration == self.config.iters)

    def _iterate(self, stop, bar):
        options, steps = self.options, self.config.iters - self.iteration
        read = SampleReader(self.dataset, self.seed, options.on_bad_sample == "skip")
        here = self.config.batch_size * options.accumulate
        sampler = TrainSampler(len(self.dataset), here, self.samples, steps, self.seed)
        meter = Meter(self.batch_size, self.config.iters)
        try:
            for batch in train_batches(read, sampler, options.num_workers):
                meter.batch_ready()
                self._step(batch, meter)
                bar.update()
                if self.iteration % options.log_iters == 0 or self.iteration == self.config.iters:
                    self.log(meter, bar)
                if self.skipped_in_a_row == MOST_SKIPPED:
                    raise RunError(GIVING_UP.format(self.iteration))
                stopped = distributed.any_process(stop.requested)
                if self._at_save_point() or stopped:
                    self.save()
                    if stopped:
                        self._terminate(stop)
                    self.evaluate(stop)
                    meter.resume()
        except RunError:
            self.save()
            raise

    def _step(self, batch, meter):
        iteration = self.iteration + 1
        seed_generators(self.seed, iteration)
        self.rate = self.optimizer.get_lr()
        with memory_advice(batch.arrays["img"].shape, self.options.accumulate):
            outcome = self.step(batch.arrays, iteration)
        self.iteration = iteration
        self.samples += self.batch_size
        for problem in batch.problems:
            self._note_skip("samples", "replaced_sample", f"Replaced a sample: {problem}")
        if outcome.skipped is None:
            self.skipped_in_a_row = 0
            meter.step_done(outcome.losses, outcome.norm)
            return
        self.skipped_in_a_row += 1
        meter.step_done()
        text = f"Skipped step {iteration}: {outcome.skipped}"
        if outcome.culprits:
            text += ", with " + ", ".join(batch.files[i] for i in outcome.culprits)
        self._note_skip("steps", "skipped_step", text)

    def _note_skip(self, what, kind, text):
        self.skipped[what] += 1
        logger.error(text)  # which every process logs
        if self.record is not None:
            self.record.line(kind, self.iteration, text=text)

    def _terminate(self, stop):
        """End the process, saved as it is, as the signal wanted that it or another one got."""
        if self.unsaved is not None:
            raise self.unsaved
        stop.requested = stop.requested or signal.SIGTERM
        if self.record is not None:
            self.record.close()
        logger.info(
            "%s: saved at iteration %d; --resume goes on from there",
            signal.Signals(stop.requested).name,
            self.iteration,
        )
        raise SystemExit(stop.exit_code)

    def log(self, meter, bar):
        """One line, or the bar's; and the record's figures."""
        figures = meter.read(self.iteration)
        rates = group_rates(self.config, self.rate)
        if self.record is not None:
            self.record.training(self.iteration, figures, rates)
        if not bar.disable:
            bar.set_postfix_str(f"loss {figures['loss']:.4f}, {figures['ips']:.2f} images/s")
            return
        logger.info(
            "[TRAIN] epoch: %d, iter: %d/%d, loss: %.4f, lr: %.6g, batch_cost: %.4f, "
            "reader_cost: %.4f, ips: %.2f images/s | ETA %s",
            (self.samples - 1) // len(self.dataset) + 1,
            self.iteration,
            self.config.iters,
            figures["loss"],
            rates["base"],
            figures["batch_cost"],
            figures["reader_cost"],
            figures["ips"],
            eta_text(figures["eta"]),
        )

    def evaluate(self, stop):
        """Score the model, and the averaged one; remember and save the best."""
        if self.val_dataset is None:
            return
        models = {"": self.model}
        if self.ema_model is not None:
            models["ema_"] = self.ema_model
        with stop.ends_at_once():  # the checkpoint is written
            for prefix, model in models.items():
                distributed.share_statistics(model)
                scores = evaluate(model, self.val_dataset, self.protocol)
                log_scores(scores, len(self.val_dataset), "EMA " if prefix else "")
                self._compare(scores, model, prefix)
            if self.record is not None:
                self.record.examples(self.iteration, self.val_dataset, self.model)
        self.evaluated = self.iteration
        if self.saved is not None and distributed.rank() == 0:
            folder, manifest = self.saved
            checkpoint.write_manifest(folder, {**manifest, **self._progress()})
        logger.info(
            "[EVAL] The best mIoU so far is %.4f, at iteration %d, in %s",
            self.best["miou"],
            self.best["iteration"],
            self.save_dir / "best_model",
        )

    def _compare(self, scores, model, prefix):
        """Note scores, and save the model if they are the best."""
        if self.record is not None:
            self.record.evaluation(self.iteration, scores, prefix)
        if scores.miou <= self.best.get(f"{prefix}miou", -1.0):
            return
        self.best[f"{prefix}miou"] = scores.miou
        self.best[f"{prefix}iteration"] = self.iteration
        self._write(f"{prefix}best_model", {f"{prefix}model.pdparams": model.state_dict()})

    def save(self):
        """Write ``iter_N``, and remove the oldest; where it cannot be written, the run goes on."""
        states = {
            checkpoint.MODEL: self.model.state_dict(),
            checkpoint.OPTIMIZER: self.optimizer.state_dict(),
        }
        if self.ema_model is not None:
            states[checkpoint.EMA] = self.ema_model.state_dict()
        self.saved = self._write(f"iter_{self.iteration}", states)
        if self.saved is not None:
            folder, manifest = self.saved
            checkpoint.remove_old(self.save_dir, self.options.keep_checkpoint_max, manifest)
            logger.info("Saved %s", folder)

    def _write(self, name, states):
        """Write a checkpoint in the first process: its folder and manifest, or None."""
        if distributed.rank() != 0:
            return None
        facts = {
            "run": self.run_name,
            "seed": self.seed,
            "seconds": self._seconds(),
            "scaler": self.step.scaler_state(),
            "parameters": checkpoint.parameter_names(self.model),
            "config": self.settings,
            "versions": _versions(),
            **self._progress(),
        }
        try:
            manifest = checkpoint.save(self.save_dir / name, states, facts)
        except RunError as error:
            logger.error(error)
            self.unsaved = error
            return None
        self.unsaved = None
        return self.save_dir / name, manifest

    def _progress(self):
        return {name: getattr(self, name) for name in self.PROGRESS}

    def _seconds(self):
        return self.before + time.monotonic() - self.start

    def _sum_up(self):
        logger.info("Done: %d iterations in %s", self.iteration, eta_text(self._seconds()))
        if self.val_dataset is not None:
            for prefix in ("", "ema_") if self.ema_model is not None else ("",):
                logger.info(
                    "Best mIoU %.4f at iteration %d: %s",
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
        logger.info("Curves: %s", self.save_dir / CURVES)


def _versions():
    """The versions that a checkpoint was made with."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _flatten(tree, prefix=""):
    """A tree of dictionaries and lists as one dictionary with dotted keys, its values JSON's."""
    if not isinstance(tree, (dict, list)):
        plain = tree is None or isinstance(tree, (str, int, float))
        return {prefix[:-1]: tree if plain else str(tree)}
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    flat = {}
    for key, value in items:
        flat.update(_flatten(value, f"{prefix}{key}."))
    return flat
