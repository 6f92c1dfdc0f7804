"""One step of training: from a batch to changed weights."""

import contextlib
import random
from typing import NamedTuple, Optional

import numpy as np
import paddle
from paddleseg.core.train import loss_computation
from paddleseg.utils import update_ema_model

from ..errors import InputError, one_line
from ..log import logger
from ..models import CrossEntropyLoss, SegFormer
from . import distributed
from .optimizer import gradient_norm


class StepResult(NamedTuple):
    """What a step did.

    Attributes:
        losses: The weighted losses, floats: means over the batch of all processes.
        norm: The gradient's norm, before any clipping.
        skipped: None, or why the weights were left as they were.
        bad_samples: Positions in this process's batch of the samples that may have caused it: those
            that did, where any process knows.
    """

    losses: list
    norm: float
    skipped: Optional[str]
    bad_samples: list


class TrainStep:
    """A model, its losses and optimizer, and how a batch changes them.

    The parts of a step's batch, in all processes, together have the gradient of the whole batch,
    wherever it is cut: losses are averaged over all its pixels. Exceptions: statistics of BatchNorm
    are each part's own, and so are losses that are no mean over pixels, or only over the hardest.

    Args:
        model: A PaddleSeg model.
        losses: PaddleSeg's dictionary of ``types`` and ``coef``.
        optimizer: Paddle's optimizer of the model.
        options: ``TrainOptions``.
        ema_model: The averaged model, or None.
    """

    def __init__(self, model, losses, optimizer, options, ema_model):
        self.losses, self.optimizer, self.ema_model = losses, optimizer, ema_model
        self.frozen_backbone = options.freeze_backbone
        if isinstance(model, SegFormer):
            model.leave_resizing_to(losses["types"])
        self.model = self.parallel_model = model
        if distributed.world_size() > 1:
            if paddle.get_device() != "cpu":  # synchronized BatchNorm has no CPU kernel
                self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.parallel_model = paddle.DataParallel(self.model)
        self.amp = {"enable": options.precision != "fp32", "level": "O1"}
        self.amp["dtype"] = "bfloat16" if options.precision == "bf16" else "float16"
        schedule = optimizer._learning_rate
        is_schedule = isinstance(schedule, paddle.optimizer.lr.LRScheduler)
        self.schedule = schedule if is_schedule else None
        self.scaler = paddle.amp.GradScaler(enable=options.precision == "fp16")
        # What a forward pass changes: buffers, and BatchNorm's statistics, parameters to Paddle.
        named = self.model.named_parameters()
        self.statistics = [p for n, p in named if n.endswith(("._mean", "._variance"))]
        self.statistics += self.model.buffers()
        types = [t for loss in losses["types"] for t in (loss, *getattr(loss, "losses", ()))]
        self.cross_entropies = [loss for loss in types if isinstance(loss, CrossEntropyLoss)]
        exact = [loss for loss in self.cross_entropies if loss.top_k_percent_pixels >= 1]
        if options.grad_accum_steps * distributed.world_size() > 1 and len(exact) < len(types):
            logger.warning(
                "A loss that is no mean over pixels is averaged over the %d parts of a step, which "
                "is not the loss of the whole batch",
                options.grad_accum_steps * distributed.world_size(),
            )

    def __call__(self, parts, iteration):
        """Make a step.

        Where an image, a loss or the gradient is not finite, nothing changes but the schedule's
        position, and in half precision the loss scale.

        Args:
            parts: For each part, tensors by name, ``img [N, 3, H, W]`` and ``label [N, H, W]``
                among them.
            iteration: Number of the step, from 1.

        Returns:
            ``StepResult``.

        Raises:
            InputError: The losses are not for this model, or not as many as it has outputs.
        """
        self.model.train()
        if self.frozen_backbone:
            self.model.backbone.eval()
        statistics = [tensor.clone() for tensor in self.statistics]
        try:
            losses = self._accumulate(parts)
            norm = gradient_norm(self.model.parameters()) / self._scale()
            losses = np.array([[float(loss) for loss in part] for part in losses])
            outcome = self._check_finite(losses, norm, [part["img"] for part in parts])
            if outcome.skipped is not None:
                self._restore(statistics)
        except Exception:
            self._restore(statistics)
            self.optimizer.clear_grad(set_to_zero=False)
            raise
        overflow = self.scaler.is_enable() and not np.isfinite(norm)  # by which the scale adapts
        if outcome.skipped is None or overflow:
            self.scaler.step(self.optimizer)
            self.scaler.update()  # by what it saw in its last step
        self.optimizer.clear_grad(set_to_zero=False)
        if self.schedule is not None:
            self.schedule.step()
        if self.ema_model is not None and outcome.skipped is None:
            update_ema_model(self.ema_model, self.model, step=iteration)
            if self.frozen_backbone:  # an average of equal values is not quite their value
                self.ema_model.backbone.set_state_dict(self.model.backbone.state_dict())
        return outcome

    def _restore(self, statistics):
        for tensor, before in zip(self.statistics, statistics):
            paddle.assign(before, tensor)

    def _accumulate(self, parts):
        """Add up the parts' gradients; returns the losses of each, tensors."""
        shares, losses = self._loss_scales(parts), []
        for i, part in enumerate(parts):
            unsynchronized = distributed.world_size() > 1 and i + 1 < len(parts)
            with self.parallel_model.no_sync() if unsynchronized else contextlib.nullcontext():
                losses.append(self._backward(part, shares[i], len(parts)))
        return losses

    def _loss_scales(self, parts):
        """For each part, the ``share`` of each cross-entropy; see ``CrossEntropyLoss``."""
        pieces = len(parts) * distributed.world_size()
        shares = np.ones([len(parts), len(self.cross_entropies)])
        if pieces == 1:
            return shares
        for i, loss in enumerate(self.cross_entropies):
            divisors = [loss.divisor(part["label"]) for part in parts]
            if None not in divisors:
                mean = distributed.all_reduce_sum(np.array([sum(divisors)]))[0] / pieces
                shares[:, i] = np.array(divisors) / mean if mean > 0 else 1.0
        return shares

    def _backward(self, part, shares, parts):
        """Add a part's gradients to the parameters' own; returns its losses, tensors."""
        for loss, share in zip(self.cross_entropies, shares):
            loss.share = float(share)
        with paddle.amp.auto_cast(**self.amp):
            losses = self._compute_losses(self.parallel_model(part["img"]), part)
            loss = sum(losses) / parts
        self.scaler.scale(loss).backward()
        return [loss.detach() for loss in losses]

    def _compute_losses(self, outputs, part):
        """The weighted losses of a model's outputs, as PaddleSeg's training defines them."""
        of_model = getattr(self.model, "loss_computation", None)
        types = self.losses["types"]
        if of_model is None and len(outputs) != len(types):
            raise InputError(
                f"loss.coef: has {len(types)} entries, but the model has {len(outputs)} outputs; "
                "give one for each."
            )
        try:
            if of_model is not None:
                return of_model(outputs, self.losses, part)
            labels = part["label"].astype("int64")
            edges = part["edge"].astype("int64") if "edge" in part else None
            return loss_computation(outputs, labels, edges, self.losses)
        except (AssertionError, IndexError, TypeError, ValueError) as error:
            if not all(type(loss).__module__.startswith("paddle") for loss in types):
                raise  # one of the user's own, who needs the traceback
            names = ", ".join(dict.fromkeys(type(loss).__name__ for loss in types))
            raise InputError(
                f"loss.types: {names} cannot be computed of what {type(self.model).__name__} and "
                f"the labels give: {one_line(error)}"
            ) from error

    def _check_finite(self, losses, norm, images):
        """Whether all processes may use what came of a step; ``losses`` is ``[parts, losses]``."""
        bad_images = [~paddle.isfinite(part).all(axis=[1, 2, 3]).numpy() for part in images]
        bad_parts = ~np.isfinite(losses).all(axis=1)
        skipped, evidence = None, []
        if np.any(bad_images):  # of which a ReLU may have hidden all traces
            skipped, evidence = "an image is not finite", bad_images
        elif bad_parts.any():
            skipped = f"a loss is {losses[bad_parts].sum()}"
            evidence = [np.full(len(part), bad) for part, bad in zip(images, bad_parts)]
        # In fp16, gradients overflow now and then until the scale has found its size.
        elif not np.isfinite(norm) and self._scale() <= 1:
            skipped = f"the gradient's norm is {norm}"
        figures = [*losses.mean(axis=0), skipped is not None, len(evidence) > 0]
        figures = distributed.all_reduce_sum(np.array(figures, dtype="float64"))
        *losses, skips, witnesses = figures / distributed.world_size()
        if skips and skipped is None:
            skipped = "another process has no finite loss"
        if skips and not witnesses:  # nobody knows better
            evidence = [np.full(len(part), True) for part in images]
        bad_samples = np.flatnonzero(np.concatenate(evidence)) if evidence else []
        return StepResult(losses, norm, skipped, list(bad_samples))

    def refresh_rate(self):
        """Let the rate follow a schedule whose settings are no longer those it was saved with."""
        if self.schedule is not None:
            self.schedule.step(self.schedule.last_epoch)

    def _scale(self):
        """What the loss was multiplied by."""
        return self.scaler_state().get("scale", 1.0)

    def scaler_state(self):
        """The dynamic loss scale's state as plain JSON, empty but in fp16."""
        return {name: np.asarray(v).item() for name, v in self.scaler.state_dict().items()}

    def set_scaler_state(self, state):
        """Go on with a state that ``scaler_state`` gave."""
        if state and self.scaler.is_enable():
            scale = np.array([state["scale"]], dtype="float32")
            self.scaler.load_state_dict({**state, "scale": scale})


def seed_all(seed, iteration):
    """Seed all generators for a step of this process.

    What a step draws (dropped channels and paths) then follows from seed, iteration and process
    alone: a resumed run need not restore any generator.
    """
    entropy = np.random.SeedSequence([seed, iteration, distributed.rank()])
    state = int(entropy.generate_state(1)[0])
    paddle.seed(state)
    np.random.seed(state)
    random.seed(state)


@contextlib.contextmanager
def out_of_memory_hint(shape, parts, model):
    """Turn Paddle's report of a full device into advice.

    Args:
        shape: Of a part's images, ``[N, 3, H, W]``.
        parts: How many of them a step has.
        model: The model.

    Raises:
        MemoryError: The device's memory is full.
    """
    try:
        yield
    except (MemoryError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        images, _, height, width = shape
        advice = ["smaller crops"]
        if getattr(getattr(model, "backbone", None), "recompute", None) is False:
            advice.insert(0, "--opts model.backbone.recompute=true")
        smaller = max((n for n in range(1, images) if images % n == 0), default=None)
        if smaller is not None:
            flags = f"--batch_size {smaller} --grad_accum_steps {parts * images // smaller}"
            advice.insert(0, f"{flags}, which has the same gradients")
        raise MemoryError(
            f"The device's memory is full with {images} images of {width}x{height} at a time: "
            f"try {', or '.join(advice)}."
        ) from error
