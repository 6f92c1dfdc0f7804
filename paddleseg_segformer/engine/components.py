"""Building the components of a training run, and checking them before the first step."""

import copy

from paddleseg.utils import init_ema_params

from ..config import build, settings
from ..data import class_names, palette
from ..data.validate import first_sample, quick_check
from ..device import versions
from ..inference import TestConfig
from ..models import MIN_IMAGE_SIZE
from . import checkpoint, distributed, run_dir
from .dataloader import BatchReader, TrainSampler, train_batches
from .evaluator import evaluate
from .optimizer import configure_parameters
from .train_step import TrainStep


def build_components(config, options):
    """Build what a configuration describes.

    Args:
        config: PaddleSeg's ``Config``.
        options: ``TrainOptions``.

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
    val_dataset = build(config, "val_dataset")[0] if options.do_eval else None
    _check(config, options, dataset, val_dataset, model)
    ema_model = None
    if options.use_ema:
        ema_model = copy.deepcopy(model)
        init_ema_params(ema_model, model)
        ema_model.eval()
    step = TrainStep(model, losses, optimizer, options, ema_model)
    metadata = {
        "optimizer": type(optimizer).__name__,
        "parameters": checkpoint.parameter_names(step.model),
        "config": config_settings,
        "arrangement": {  # what changes the result besides the config
            "accumulate": options.grad_accum_steps,
            "freeze_backbone": options.freeze_backbone,
            "use_ema": options.use_ema,
            "precision": options.precision,
            "processes": distributed.world_size(),
        },
        "classes": class_names(dataset),
        "palette": palette(dataset).tolist(),
        "versions": versions(),
    }
    return dataset, val_dataset, step, metadata


def build_batches(config, options, dataset, state, seed):
    """Yield the training batches from ``state`` to the last iteration; see ``train_batches``."""
    sampler = TrainSampler(
        len(dataset),
        config.batch_size,
        options.grad_accum_steps,
        first=state.samples,
        steps=config.iters - state.iteration,
        seed=seed,
    )
    read = BatchReader(dataset, seed, replace_bad=options.on_bad_sample == "skip")
    return train_batches(read, sampler, options.num_workers)


def _check(config, options, dataset, val_dataset, model):
    """Fail now on what would fail after hours of training."""
    one_size, tolerant = config.batch_size > 1, options.on_bad_sample == "skip"
    quick_check(dataset, val_dataset, one_size, tolerant, MIN_IMAGE_SIZE)
    if val_dataset is not None:
        evaluate(model, first_sample(val_dataset), TestConfig.from_config(config))
    run_dir.check_disk_space(options, config.iters, model)
