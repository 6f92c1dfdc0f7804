"""Training a model from a configuration."""

from __future__ import annotations

import contextlib
import copy
import signal
import time
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Any

import paddle
from paddleseg.cvlibs import Config
from paddleseg.utils import init_ema_params

from ..config import build, settings
from ..data import class_names, palette
from ..data.validate import check_before_training, first_sample, image_types
from ..device import set_gpu_precision, versions
from ..errors import RunError
from ..fs import lock_dir, output_dir
from ..inference import TestConfig
from ..log import eta_text, logger, training_bar
from ..models import MIN_IMAGE_SIZE
from . import checkpoint, distributed, resume, run_dir
from .checkpoint_saver import CheckpointSaver
from .dataloader import BatchReader, TrainBatches, TrainSampler, synchronized_steps
from .distillation import build_distillation
from .evaluator import evaluate, log_scores
from .metric_writer import METRICS_FILE, AverageMeter, ExampleImages, MetricWriter
from .optimizer import configure_parameters, group_learning_rates
from .options import TrainOptions
from .signals import StopSignal
from .train_step import TrainStep, out_of_memory_hint, seed_all
from .upload import defer_normalize, on_gpu

MAX_CONSECUTIVE_SKIPS = 10  # steps without a finite loss and gradient, after which training fails


def train(config: Config, **options: Any) -> float | None:
    """Train a model.

    Args:
        config: PaddleSeg's ``Config``, from ``load_config``.
        options: Attributes of ``TrainOptions``.

    Returns:
        The best mIoU; None without evaluation.

    Raises:
        InputError: The configuration, the data or an option is invalid.
        RunError: Training cannot continue, or its last checkpoint could not be saved.
        MemoryError: The device is out of memory.
        SystemExit: On SIGTERM, SIGINT or SIGHUP, after saving; the code is 128 + the signal number.
    """
    options = TrainOptions(**options)
    set_gpu_precision(options.deterministic, options.no_tf32)
    with output_dir(options.save_dir), contextlib.ExitStack() as stack:
        distributed.start()
        if distributed.rank() == 0:
            stack.enter_context(lock_dir(options.save_dir))
        trainer = Trainer(config, options, resume.find_resume_checkpoint(options))
        trainer.run()
    return trainer.state.best.get("miou") if options.do_eval else None


@dataclass
class TrainerState:
    """Progress of a run, as stored in the checkpoints' manifests."""

    iteration: int = 0  # optimizer steps so far, skipped ones included
    samples: int = 0  # in these steps, over all processes: the sampler's position
    best: dict = field(default_factory=dict)  # "miou", "iteration"; "ema_miou", "ema_iteration"
    evaluated: int = 0  # iteration of the last evaluation
    evaluations_since_best: int = 0  # in a row, of the model and not of the EMA model
    # Number of skipped steps, and of samples that were replaced.
    skipped: dict = field(default_factory=lambda: {"steps": 0, "samples": 0})
    skipped_in_a_row: int = 0  # steps since the last one that was not skipped
    seconds: float = 0.0  # training time up to the checkpoint that was resumed from

    def __post_init__(self):
        self._start = time.monotonic()

    def total_seconds(self):
        """Training time so far, that before resuming included."""
        return self.seconds + time.monotonic() - self._start

    def to_manifest(self):
        """The entries of a checkpoint's manifest."""
        return {**asdict(self), "seconds": self.total_seconds()}

    def restore(self, manifest):
        """Set all attributes from a manifest."""
        for attribute in fields(self):
            setattr(self, attribute.name, manifest[attribute.name])


class Trainer:
    """A training run, whose progress is in ``state``.

    Args:
        config: PaddleSeg's ``Config``.
        options: ``TrainOptions``.
        resume_from: Folder and manifest of the checkpoint to resume from, or None.
    """

    def __init__(self, config, options, resume_from):
        self.config, self.options, self.state = config, options, TrainerState()
        self.save_dir = Path(options.save_dir)
        resume.check_iterations(config.iters, resume_from)
        self.seed = resume.choose_seed(options, resume_from)
        paddle.seed(self.seed)
        self.test_config = TestConfig.from_config(config)
        self.dataset, self.val_dataset, self.step, metadata = build_components(
            config, options, self.test_config
        )
        self.batch_size = config.batch_size * options.grad_accum_steps * distributed.world_size()
        metadata["seed"] = self.seed
        self.saver = CheckpointSaver(
            self.save_dir, options.keep_checkpoint_max, self.step, self.state, metadata
        )
        if resume_from is not None:
            resume.restore(*resume_from, self.step, self.state, metadata)
            if resume_from[0].resolve().parent == self.save_dir.resolve():
                self.saver.newest = resume_from
                metadata["run"] = resume_from[1]["run"]
            else:  # a new run, which has no best model yet
                self.state.best, self.state.evaluations_since_best = {}, 0
        self.first_iteration = self.state.iteration

    def run(self):
        """Train up to the configuration's last iteration."""
        state, iters = self.state, self.config.iters
        self.writer = open_writer(self.options, state, self.saver.metadata)
        logger.info(
            f"Training {type(self.step.model).__name__} on {len(self.dataset)} images with batch "
            f"size {self.batch_size}, iteration {state.iteration} to {iters}, into {self.save_dir}"
        )
        progress_bar = training_bar(iters, state.iteration)
        # The writer is closed while signals are handled: a launcher may send the stop signal twice.
        with StopSignal() as stop, contextlib.closing(self.writer), progress_bar as bar:
            if self._is_save_iteration() and state.evaluated != state.iteration:
                self._evaluate(stop)  # the run was stopped between saving and evaluating
            try:
                if not self._stops_early():
                    self._train(stop, bar)
            except Exception:
                self._save_progress()
                raise
            if state.iteration < iters and not self._stops_early():
                self._exit(stop)
        if state.iteration < iters:
            logger.info(
                f"Early stop at iteration {state.iteration}: the last "
                f"{state.evaluations_since_best} evaluations had no better mIoU"
            )
        log_summary(state, self.save_dir)
        self.saver.raise_errors()

    def _train(self, stop, bar):
        """Run optimizer steps up to the last iteration, or until a signal requests to stop."""
        config, options, state = self.config, self.options, self.state
        accumulate, size = options.grad_accum_steps, len(self.dataset)
        remaining = config.iters - state.iteration
        shuffle = config.dic["train_dataset"].get("shuffle", True)
        sampler = TrainSampler(
            size, config.batch_size, accumulate, state.samples, remaining, self.seed, shuffle
        )
        # On a CPU, OpenCV's lookup in the workers is faster than Paddle's.
        dataset, normalize = defer_normalize(self.dataset) if on_gpu() else (self.dataset, None)
        reader = BatchReader(dataset, self.seed, options.on_bad_sample == "skip", normalize)
        self.batches = TrainBatches(reader, sampler, options.num_workers)
        steps = synchronized_steps(self.batches, accumulate, stop)
        meter = AverageMeter(self.batch_size, config.iters)
        with contextlib.closing(steps):  # else a traceback that a notebook keeps keeps the workers
            for micro_batches, problems in steps:
                state.skipped["samples"] += len(problems)
                for problem in problems:
                    text = f"Replaced a sample: {problem}"
                    self.writer.skip("replaced_sample", state.iteration, text)
                meter.batch_ready()
                lr = self.step.optimizer.get_lr()
                self._train_step(micro_batches, meter)
                bar.update()
                if state.iteration % options.log_iters == 0 or state.iteration == config.iters:
                    epoch = (state.samples - 1) // size + 1
                    rates = group_learning_rates(config, lr)
                    metrics = meter.compute(state.iteration)
                    self.writer.train(state.iteration, epoch, metrics, rates, bar)
                if state.skipped_in_a_row >= MAX_CONSECUTIVE_SKIPS:
                    raise RunError(
                        f"{MAX_CONSECUTIVE_SKIPS} steps in a row had no finite loss and gradient: "
                        f"stopped at iteration {state.iteration}. Check the images named above, or "
                        "resume from an earlier checkpoint with a lower learning rate, a longer "
                        "warm-up or optimizer.grad_clip_cfg."
                    )
                if self._is_save_iteration():
                    self.saver.save()
                    self._evaluate(stop)
                    if self._stops_early():
                        return
                    meter.restart_clock()

    def _train_step(self, micro_batches, meter):
        state, iteration = self.state, self.state.iteration + 1
        seed_all(self.seed, iteration)
        arrays = [batch.arrays for batch in micro_batches]
        with out_of_memory_hint(arrays[0]["img"].shape, len(arrays), self.step.model):
            bad_images = [batch.bad_images for batch in micro_batches]
            result = self.step(arrays, iteration, bad_images, self.batches.prefetch)
        state.iteration = iteration
        state.samples += self.batch_size
        if result.skipped is None:
            state.skipped_in_a_row = 0
            meter.step_done(result.losses, result.norm)
            return
        meter.step_done()
        state.skipped_in_a_row += 1
        state.skipped["steps"] += 1
        files = [file for batch in micro_batches for file in batch.files]
        bad_files = chain(*distributed.all_gather([files[i] for i in result.bad_samples]))
        text = f"Skipped step {iteration}: {result.skipped}, with {', '.join(bad_files)}"
        self.writer.skip("skipped_step", iteration, text)

    def _evaluate(self, stop):
        """Evaluate the model and the EMA model, and save those that are the best so far."""
        if self.val_dataset is None:
            return
        state = self.state
        try:
            for prefix, model in (("", self.step.model), ("ema_", self.step.ema_model)):
                if model is None:
                    continue
                distributed.broadcast_batch_norm_stats(model)
                examples = ExampleImages(self.val_dataset)
                with stop.exit_immediately():  # since the checkpoint is saved already
                    scores = evaluate(model, self.val_dataset, self.test_config, observe=examples)
                log_scores(scores, len(self.val_dataset), "EMA " if prefix else "")
                self.writer.evaluation(state.iteration, scores, prefix, examples.rows)
                is_better = self.saver.save_best(prefix, model, scores.miou)
                if not prefix:
                    count = state.evaluations_since_best + 1
                    state.evaluations_since_best = 0 if is_better else count
        except SystemExit:
            logger.info("Stopped during evaluation; --resume repeats it")
            raise
        state.evaluated = state.iteration
        self.saver.update_manifest()
        if "miou" in state.best:
            logger.info(
                f"[EVAL] The best mIoU so far is {state.best['miou']:.4f}, at iteration "
                f"{state.best['iteration']}, in {self.save_dir / 'best_model'}"
            )

    def _stops_early(self):
        limit = self.options.early_stop_intervals
        return limit is not None and self.state.evaluations_since_best >= limit

    def _is_save_iteration(self):
        iteration = self.state.iteration
        is_last = iteration == self.config.iters
        return iteration > 0 and (is_last or iteration % self.options.save_interval == 0)

    def _save_progress(self):
        """Save a checkpoint, unless this iteration has one."""
        if self.state.iteration > self.first_iteration and not self._is_save_iteration():
            self.saver.save()

    def _exit(self, stop):
        """Save and exit, on a signal to this process or another one."""
        self._save_progress()
        self.saver.raise_errors()
        stop.requested = stop.requested or signal.SIGTERM
        name, iteration = signal.Signals(stop.requested).name, self.state.iteration
        if iteration > self.first_iteration:
            logger.info("%s: saved at iteration %d; continue with --resume", name, iteration)
        else:
            logger.info("%s: stopped at iteration %d, before the first step", name, iteration)
        raise SystemExit(stop.exit_code)


def build_components(config, options, test_config):
    """Build what a PaddleSeg ``Config`` and ``TrainOptions`` describe.

    ``test_config`` is the ``TestConfig`` that evaluations will use; one image is tried with it.

    Returns:
        Training set, validation set (None without evaluation), ``TrainStep``, and the entries of
        the checkpoints' manifests that describe them.

    Raises:
        InputError: A component cannot be built, a check of the data fails, or the disk is too small
            for the checkpoints.
    """
    config_settings = settings(config)  # before building, which changes the config
    dataset, model, optimizer, losses = build(config, "train_dataset", "model", "optimizer", "loss")
    configure_parameters(config, model, options.freeze_backbone)
    distillation = build_distillation(config, dataset, model)
    val_dataset = build(config, "val_dataset")[0] if options.do_eval else None
    # Fail now on what would fail after hours of training.
    one_size, tolerant = config.batch_size > 1, options.on_bad_sample == "skip"
    check_before_training(dataset, val_dataset, one_size, tolerant, MIN_IMAGE_SIZE)
    if val_dataset is not None:
        evaluate(model, first_sample(val_dataset), test_config)
    run_dir.check_disk_space(options, config.iters, model)
    ema_model = None
    if options.use_ema:
        ema_model = copy.deepcopy(model)
        init_ema_params(ema_model, model)
        ema_model.eval()
    step = TrainStep(model, losses, optimizer, options, ema_model, distillation)
    # What changes the result besides the config.
    arrangement = {"accumulate": options.grad_accum_steps, "processes": distributed.world_size()}
    for name in ("freeze_backbone", "use_ema", "precision"):
        arrangement[name] = getattr(options, name)
    metadata = {
        "optimizer": type(optimizer).__name__,
        "parameters": checkpoint.parameter_names(step.model),
        "config": config_settings,
        "arrangement": arrangement,
        "classes": class_names(dataset),
        "palette": palette(dataset).tolist(),
        "image_types": image_types(dataset),
        "versions": versions(),
    }
    return dataset, val_dataset, step, metadata


def open_writer(options, state, metadata):
    """Set the ``run`` of the checkpoints' manifests, and open the ``MetricWriter``."""
    folder, resumed = options.save_dir, options.resume and state.iteration > 0
    try:
        if distributed.rank() == 0:
            run = run_dir.read_run(folder)[0] if resumed else None
            run = run or run_dir.start_run(folder, options.resume_model, metadata.get("run"))
            metadata["run"] = run
        return MetricWriter(folder, state.iteration, state.evaluated, options.use_vdl)
    except OSError as error:
        raise RunError(f"--save_dir {folder}: cannot be written to ({error.strerror}).") from error


def log_summary(state, save_dir):
    """Log a run's duration, best mIoU, and numbers of skipped steps and replaced samples."""
    logger.info("Done: %d iterations in %s", state.iteration, eta_text(state.total_seconds()))
    for prefix, suffix in (("", ""), ("ema_", " of the EMA model")):
        if f"{prefix}miou" in state.best:
            miou, iteration = state.best[f"{prefix}miou"], state.best[f"{prefix}iteration"]
            folder = save_dir / f"{prefix}best_model"
            logger.info("Best mIoU%s %.4f at iteration %d: %s", suffix, miou, iteration, folder)
    if any(state.skipped.values()):
        logger.warning(
            f"Skipped {state.skipped['steps']} steps without a finite loss and gradient, replaced "
            f"{state.skipped['samples']} samples that could not be read; see "
            f"{save_dir / METRICS_FILE}"
        )
