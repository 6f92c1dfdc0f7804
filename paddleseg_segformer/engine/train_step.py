"""One optimizer step: forward and backward of its micro-batches, checks, update, EMA."""

import contextlib
import copy
import random
from functools import partial
from itertools import chain
from typing import NamedTuple, Optional

import numpy as np
import paddle
from paddleseg.core.train import loss_computation
from paddleseg.models import MixedLoss
from paddleseg.utils import update_ema_model

from ..errors import InputError, one_line
from ..inference.segmenter import misfit_errors
from ..log import logger
from ..models import CrossEntropyLoss, SegFormer
from ..ops import resize_bilinear
from . import distributed
from .optimizer import fuse_updates, gradient_norm


class StepResult(NamedTuple):
    """Result of a step."""

    losses: list  # weighted, floats, averaged over the batch of all processes
    norm: float  # of the gradient, before any clipping
    skipped: Optional[str]  # why the weights were not updated
    # Positions of the suspect samples in this process's batch: the non-finite ones where a
    # process can identify them, else all.
    bad_samples: list


class TrainStep:
    """Updates a model by one batch, with gradient accumulation, mixed precision and EMA.

    The micro-batches of all processes together give the loss and the gradient of the whole batch,
    because losses are averaged over the pixels of all of them. Still computed per micro-batch are
    BatchNorm's statistics, and losses that are not a mean over all pixels (Dice, Lovasz, OHEM).

    Args:
        model, optimizer: A PaddleSeg model and its optimizer.
        losses: PaddleSeg's dictionary of ``types`` and ``coef``.
        options: ``TrainOptions``.
        ema_model: The copy of the model whose weights are averaged, or None.
        distillation: ``Distillation``, whose loss is added to the others, or None.
    """

    def __init__(self, model, losses, optimizer, options, ema_model, distillation=None):
        self.losses, self.optimizer, self.ema_model = losses, optimizer, ema_model
        self.distillation = distillation
        self.frozen_backbone = options.freeze_backbone
        # CrossEntropyLoss resizes logits itself, without storing them at full size.
        loss_resizes = all(isinstance(loss, CrossEntropyLoss) for loss in losses["types"])
        is_segformer = isinstance(model, SegFormer)
        can_skip_resize = is_segformer and loss_resizes and not model.align_corners
        # Distillation takes logits of stride 4, before they are resized for other losses.
        self.resizes_logits = is_segformer and distillation is not None and not can_skip_resize
        small = can_skip_resize or self.resizes_logits
        self.forward_options = {"resize_logits": False} if small else {}
        self.model = self.parallel_model = model
        if distributed.world_size() > 1:
            if paddle.get_device() != "cpu":  # synchronized BatchNorm has no CPU kernel
                self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.parallel_model = paddle.DataParallel(self.model)
        dtype = "bfloat16" if options.precision == "bf16" else "float16"
        self.amp = {"enable": options.precision != "fp32", "level": "O1", "dtype": dtype}
        # On neither of Paddle's lists, it would follow its weight, and GELU after it: to float32.
        self.amp["custom_white_list"] = {"depthwise_conv2d"}
        fuse_updates(optimizer, model.parameters())
        rate = optimizer._learning_rate
        self.schedule = rate if isinstance(rate, paddle.optimizer.lr.LRScheduler) else None
        self.scaler = paddle.amp.GradScaler(enable=options.precision == "fp16")
        # State that a forward pass changes; BatchNorm's statistics are parameters in Paddle.
        named = self.model.named_parameters()
        self.statistics = [p for n, p in named if n.endswith(("._mean", "._variance"))]
        self.statistics += self.model.buffers()
        types = []
        for loss in losses["types"]:
            types += loss.losses if isinstance(loss, MixedLoss) else [loss]
        self.cross_entropies = [loss for loss in types if isinstance(loss, CrossEntropyLoss)]
        pixel_means = [loss for loss in self.cross_entropies if loss.top_k_percent_pixels >= 1]
        micro_batches = options.grad_accum_steps * distributed.world_size()
        if micro_batches > 1 and len(pixel_means) < len(types):
            logger.warning(
                f"A loss that is not a mean over pixels is averaged over the {micro_batches} "
                "micro-batches of a step, which is not the loss of the whole batch"
            )

    def __call__(self, micro_batches, iteration, bad_images=None, while_busy=None):
        """Do one optimizer step and return its ``StepResult``.

        If an image, a loss or the gradient is not finite, only the learning rate schedule and, in
        fp16, the loss scale advance. Overflows of the gradient in fp16 are not counted as skipped.

        Args:
            micro_batches: List of dictionaries of tensors, with ``img`` ``[N, C, H, W]`` and
                ``label`` ``[N, H, W]``.
            iteration: Number of the step, from 1.
            bad_images: For each micro-batch, the positions of the images that are not finite; None
                if there are none.
            while_busy: Function to call before waiting for the device's losses; or None.

        Raises:
            InputError: The losses do not fit the model or the number of its outputs.
        """
        self.model.train()
        if self.frozen_backbone:
            self.model.backbone.eval()
        statistics = [tensor.clone() for tensor in self.statistics]
        try:
            losses = self._accumulate(micro_batches)
            # One transfer, because a GPU waits for the next kernel calls after each.
            scale = [self.scaler._scale] if self.scaler.is_enable() else []
            norm = gradient_norm(self.model.parameters())
            if while_busy is not None:
                while_busy()
            norm, *values = _to_host([norm, *chain(*losses), *scale])
            scale = values.pop() if scale else 1.0
            norm, losses = norm / scale, np.reshape(values, [len(losses), -1])
            bad_images = bad_images or [[] for _ in micro_batches]
            sizes = [len(batch["img"]) for batch in micro_batches]
            result = self._check_finite(losses, norm, scale, bad_images, sizes)
            overflow = self.scaler.is_enable() and not np.isfinite(norm)
            updated = result.skipped is None and not overflow
            if not updated:
                self._restore(statistics)
        except Exception:
            self._restore(statistics)
            self.optimizer.clear_grad(set_to_zero=False)
            raise
        if updated or overflow:  # which lowers the loss scale, and updates nothing
            self.scaler.step(self.optimizer)
            self.scaler.update()  # only after step(): it reads that one's overflow flag
        self.optimizer.clear_grad(set_to_zero=False)
        if self.schedule is not None:
            self.schedule.step()
        if self.ema_model is not None and updated:
            update_ema_model(self.ema_model, self.model, step=iteration)
            if self.frozen_backbone:  # averaging equal values may change them by rounding
                self.ema_model.backbone.set_state_dict(self.model.backbone.state_dict())
        return result

    def _restore(self, statistics):
        for tensor, before in zip(self.statistics, statistics):
            paddle.assign(before, tensor)

    def _accumulate(self, micro_batches):
        """Accumulate the gradients; returns the losses of each micro-batch, as tensors."""
        weights, losses = self._micro_batch_weights(micro_batches), []
        for i, batch in enumerate(micro_batches):
            synchronize = distributed.world_size() == 1 or i + 1 == len(micro_batches)
            with contextlib.nullcontext() if synchronize else self.parallel_model.no_sync():
                losses.append(self._backward(batch, weights[i], len(micro_batches)))
        return losses

    def _micro_batch_weights(self, micro_batches):
        """For each micro-batch, its normalizer over the mean one, by cross-entropy or distillation.

        With this scale, the mean of the losses is the loss of the whole batch.
        """
        scales = [{} for _ in micro_batches]
        count = len(micro_batches) * distributed.world_size()
        losses = [*self.cross_entropies, *([self.distillation] if self.distillation else [])]
        normalizers = {}
        for loss in losses if count > 1 else ():
            tensors = [loss.normalizer(batch["label"]) for batch in micro_batches]
            if tensors[0] is not None:
                normalizers[loss] = tensors
        if normalizers:  # one transfer and one message for all losses
            values = _to_host(list(chain(*normalizers.values())))
            values = np.reshape(values, [len(normalizers), -1])
            means = distributed.all_reduce_sum(values.sum(axis=1)) / count
            for loss, of_loss, mean in zip(normalizers, values, means):
                for of_batch, normalizer in zip(scales, of_loss):
                    of_batch[loss] = float(normalizer / mean) if mean > 0 else 1.0
        return scales

    def _backward(self, batch, scales, count):
        """Accumulate the gradients of one of ``count`` micro-batches; returns its losses."""
        with paddle.amp.auto_cast(**self.amp):
            with misfit_errors(self.model):
                outputs = self.parallel_model(batch["img"], **self.forward_options)
            distilled = []
            if self.distillation is not None:
                scale, inputs = scales.get(self.distillation, 1.0), (batch["img"], batch["label"])
                distilled = [self.distillation(outputs[0], *inputs, scale)]
            if self.resizes_logits:
                size, align_corners = batch["img"].shape[2:], self.model.align_corners
                outputs = [resize_bilinear(logits, size, align_corners) for logits in outputs]
            losses = [*self._compute_losses(outputs, batch, scales), *distilled]
            loss = sum(losses[1:], losses[0])
            loss = loss if count == 1 else loss / count
        self.scaler.scale(loss).backward()
        return [loss.detach() for loss in losses]

    def _compute_losses(self, outputs, batch, scales):
        types = self.losses["types"]
        losses = {**self.losses, "types": [_bind_scale(loss, scales) for loss in types]}
        model_loss_computation = getattr(self.model, "loss_computation", None)
        if model_loss_computation is None and len(outputs) != len(types):
            raise InputError(
                f"loss.coef: has {len(types)} entries, but the model has {len(outputs)} outputs; "
                "give one for each."
            )
        try:
            if model_loss_computation is not None:
                return model_loss_computation(outputs, losses, batch)
            labels = batch["label"].astype("int64")
            edges = batch["edge"].astype("int64") if "edge" in batch else None
            return loss_computation(outputs, labels, edges, losses)
        except (AssertionError, IndexError, TypeError, ValueError) as error:
            if not all(type(loss).__module__.startswith("paddle") for loss in types):
                raise  # a user's loss, whose author needs the traceback
            names = ", ".join(dict.fromkeys(type(loss).__name__ for loss in types))
            raise InputError(
                f"loss.types: {names} cannot be computed from the outputs of "
                f"{type(self.model).__name__} and the labels: {one_line(error)}"
            ) from error

    def _check_finite(self, losses, norm, scale, bad_images, sizes):
        """The ``StepResult`` from ``losses [micro-batches, losses]``, the same in all processes."""
        bad_losses = ~np.isfinite(losses).all(axis=1)
        skipped, bad_samples = None, []
        if any(bad_images):  # checked first: a ReLU may hide it from the loss
            skipped = "an image is not finite"
            bad_samples = [np.isin(np.arange(n), bad) for n, bad in zip(sizes, bad_images)]
        elif bad_losses.any():
            skipped = f"a loss is {losses[bad_losses].sum()}"
            bad_samples = [np.full(n, bad) for n, bad in zip(sizes, bad_losses)]
        # In fp16, occasional overflows of the gradient are normal: the loss scale adapts.
        elif not np.isfinite(norm) and scale <= 1:
            skipped = f"the gradient's norm is {norm}"
        values = [*losses.mean(axis=0), skipped is not None, len(bad_samples) > 0]
        values = distributed.all_reduce_sum(np.array(values, dtype="float64"))
        *losses, any_skipped, any_identified = values / distributed.world_size()
        if any_skipped and skipped is None:
            skipped = "another process has no finite loss"
        if any_skipped and not any_identified:
            bad_samples = [np.full(n, True) for n in sizes]
        bad_samples = np.flatnonzero(np.concatenate(bad_samples)) if bad_samples else []
        return StepResult(losses, norm, skipped, list(bad_samples))

    def refresh_rate(self):
        """Recompute the learning rate from the schedule, after its settings have changed."""
        if self.schedule is not None:
            self.schedule.step(self.schedule.last_epoch)

    def scaler_state(self):
        """State of the dynamic loss scaling, as plain JSON; empty unless in fp16."""
        return {name: np.asarray(v).item() for name, v in self.scaler.state_dict().items()}

    def set_scaler_state(self, state):
        """Restore a state of ``scaler_state``."""
        if state and self.scaler.is_enable():
            scale = np.array([state["scale"]], dtype="float32")
            self.scaler.load_state_dict({**state, "scale": scale})


def _to_host(tensors):
    """The values of scalar tensors of any float type, as a list of floats, in one transfer."""
    if len({tensor.dtype for tensor in tensors}) > 1:
        tensors = [tensor.astype("float64") for tensor in tensors]
    return paddle.concat([tensor.reshape([1]) for tensor in tensors]).tolist()


def _bind_scale(loss, scales):
    """A loss with its scale of ``_loss_scales``, also within a ``MixedLoss``."""
    if isinstance(loss, MixedLoss):
        mixed = copy.copy(loss)
        mixed.losses = [_bind_scale(inner, scales) for inner in loss.losses]
        return mixed
    return partial(loss, scale=scales[loss]) if loss in scales else loss


def seed_all(seed, iteration):
    """Seed all random generators for a step, so that resuming need not restore their states.

    Dropout and stochastic depth depend only on seed, iteration and process.
    """
    entropy = np.random.SeedSequence([seed, iteration, distributed.rank()])
    state = int(entropy.generate_state(1)[0])
    for set_seed in (paddle.seed, np.random.seed, random.seed):
        set_seed(state)


@contextlib.contextmanager
def out_of_memory_hint(shape, micro_batches, model):
    """Raise Paddle's out-of-memory errors as a MemoryError that suggests flags.

    ``shape`` ``[N, C, H, W]`` is that of each of a step's ``micro_batches``.
    """
    try:
        yield
    except (MemoryError, OSError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        images, _, height, width = shape
        hints = ["smaller crops"]
        if getattr(getattr(model, "backbone", None), "recompute", None) is False:
            hints.insert(0, "--opts model.backbone.recompute=true")
        if images > 1:
            smaller = max(n for n in range(1, images) if images % n == 0)
            flags = f"--batch_size {smaller} --grad_accum_steps {micro_batches * images // smaller}"
            hints.insert(0, f"{flags}, which has the same gradients")
        raise MemoryError(
            f"The device is out of memory with {images} images of {width}x{height} per "
            f"micro-batch: try {', or '.join(hints)}."
        ) from error
