"""One step of training: from a batch to changed weights."""

import contextlib
import random
from typing import NamedTuple, Optional

import numpy as np
import paddle
from paddleseg.core.train import loss_computation
from paddleseg.utils import update_ema_model

from ..models import CrossEntropyLoss, SegFormer
from . import distributed
from .optimizer import gradient_norm


class Outcome(NamedTuple):
    """What a step did.

    Attributes:
        losses: The weighted losses, floats: means over the batch of all processes.
        norm: The gradient's norm, before any clipping.
        skipped: None, or why the weights were left as they were.
        culprits: Positions in this process's batch of the samples that may have caused it.
    """

    losses: list
    norm: float
    skipped: Optional[str]
    culprits: list


class Stepper:
    """A model, its losses and optimizer, and how a batch changes them.

    The batch of a step is cut into ``accumulate`` parts, whose gradients together are that of the
    whole batch: losses are averaged over all its pixels, wherever the parts are cut and in
    whichever process they are. Statistics of BatchNorm are those of each part.

    Args:
        model: A PaddleSeg model.
        losses: PaddleSeg's dictionary of ``types`` and ``coef``.
        optimizer: Paddle's optimizer of the model.
        options: ``TrainOptions``.
        ema_model: The averaged model, or None.
    """

    def __init__(self, model, losses, optimizer, options, ema_model):
        self.losses, self.optimizer, self.ema_model = losses, optimizer, ema_model
        self.parts = options.accumulate
        if isinstance(model, SegFormer):
            model.leave_resizing_to(losses["types"])
        self.model = self.parallel_model = model
        if distributed.world_size() > 1:
            if paddle.get_device() != "cpu":  # synchronised BatchNorm has no CPU kernel
                self.model = paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)
            self.parallel_model = paddle.DataParallel(self.model)
        self.amp = {"enable": options.precision != "fp32", "level": "O1"}
        self.amp["dtype"] = "bfloat16" if options.precision == "bf16" else "float16"
        self.scaler = paddle.amp.GradScaler(enable=options.precision == "fp16")
        # What a forward pass changes: buffers, and BatchNorm's statistics, parameters to Paddle.
        named = self.model.named_parameters()
        self.statistics = [p for n, p in named if n.endswith(("._mean", "._variance"))]
        self.statistics += self.model.buffers()
        types = [t for loss in losses["types"] for t in (loss, *getattr(loss, "losses", ()))]
        self.cross_entropies = [loss for loss in types if isinstance(loss, CrossEntropyLoss)]

    def __call__(self, arrays, iteration):
        """Make a step.

        Where a loss or the gradient is not finite, nothing changes but the schedule's position,
        and in half precision the loss scale.

        Args:
            arrays: Tensors by name, ``img [N, 3, H, W]`` and ``label [N, H, W]`` among them.
            iteration: Number of the step, from 1.

        Returns:
            ``Outcome``.
        """
        statistics = [tensor.clone() for tensor in self.statistics]
        parts = self._cut(arrays)
        shares = self._shares(parts)
        losses = []
        for i, part in enumerate(parts):
            unsynchronised = distributed.world_size() > 1 and i + 1 < len(parts)
            with self.parallel_model.no_sync() if unsynchronised else contextlib.nullcontext():
                losses.append(self._backward(part, shares[i]))
        self.scaler.unscale_(self.optimizer)
        norm = gradient_norm(self.model.parameters())
        losses = np.array([[float(loss) for loss in part] for part in losses])
        outcome = self._judge(losses, norm, arrays["img"])
        if outcome.skipped is None or self.scaler.is_enable():  # which skips by itself, and adapts
            self.scaler.step(self.optimizer)
        self.scaler.update()
        if outcome.skipped is not None:
            for tensor, before in zip(self.statistics, statistics):
                paddle.assign(before, tensor)
        self.optimizer.clear_grad(set_to_zero=False)
        schedule = self.optimizer._learning_rate
        if isinstance(schedule, paddle.optimizer.lr.LRScheduler):
            schedule.step()
        if self.ema_model is not None and outcome.skipped is None:
            update_ema_model(self.ema_model, self.model, step=iteration)
        return outcome

    def _cut(self, arrays):
        size = len(arrays["img"]) // self.parts
        return [
            {name: array[i * size : (i + 1) * size] for name, array in arrays.items()}
            for i in range(self.parts)
        ]

    def _shares(self, parts):
        """For each part, the ``share`` of each cross-entropy; see ``CrossEntropyLoss``."""
        pieces = len(parts) * distributed.world_size()
        shares = np.ones([len(parts), len(self.cross_entropies)])
        if pieces == 1:
            return shares
        for i, loss in enumerate(self.cross_entropies):
            divisors = [loss.divisor(part["label"]) for part in parts]
            if None not in divisors:
                mean = distributed.sum_over_processes(np.array([sum(divisors)]))[0] / pieces
                shares[:, i] = np.array(divisors) / mean if mean > 0 else 1.0
        return shares

    def _backward(self, part, shares):
        """Add a part's gradients to the parameters' own; returns its losses, tensors."""
        for loss, share in zip(self.cross_entropies, shares):
            loss.share = float(share)
        with paddle.amp.auto_cast(**self.amp):
            losses = self._compute_losses(self.parallel_model(part["img"]), part)
            loss = sum(losses) / self.parts
        self.scaler.scale(loss).backward()
        return [loss.detach() for loss in losses]

    def _compute_losses(self, outputs, part):
        """The weighted losses of a model's outputs, as PaddleSeg's training defines them."""
        if hasattr(self.model, "loss_computation"):
            return self.model.loss_computation(outputs, self.losses, part)
        labels = part["label"].astype("int64")
        edges = part["edge"].astype("int64") if "edge" in part else None
        return loss_computation(outputs, labels, edges, self.losses)

    def _judge(self, losses, norm, images):
        """Whether all processes may use what came of a step; ``losses`` is ``[parts, losses]``."""
        bad_parts, skipped, culprits = ~np.isfinite(losses).all(axis=1), None, []
        if bad_parts.any():
            skipped = f"a loss is {losses[bad_parts].sum()}"
        elif not np.isfinite(norm) and not self._overflow_is_the_scale():
            skipped = f"the gradient's norm is {norm}"
        if skipped is not None:  # a broken image alone is to blame, else the parts, else all
            broken = ~paddle.isfinite(images).all(axis=[1, 2, 3]).numpy()
            suspects = bad_parts.repeat(len(images) // self.parts)
            culprits = np.flatnonzero(broken if broken.any() else suspects | ~suspects.any())
        figures = np.array([*losses.mean(axis=0), skipped is not None], dtype="float64")
        *losses, skips = distributed.sum_over_processes(figures) / distributed.world_size()
        if skips and skipped is None:
            skipped = "another process has no finite loss"
        return Outcome(losses, norm, skipped, list(culprits))

    def _overflow_is_the_scale(self):
        """In fp16, gradients overflow now and then until the scale has found its size."""
        return self.scaler.is_enable() and self.scaler_state()["scale"] > 1

    def scaler_state(self):
        """The dynamic loss scale's state as plain JSON, empty but in fp16."""
        return {name: np.asarray(v).item() for name, v in self.scaler.state_dict().items()}

    def set_scaler_state(self, state):
        """Go on with a state that ``scaler_state`` gave."""
        if state and self.scaler.is_enable():
            scale = np.array([state["scale"]], dtype="float32")
            self.scaler.load_state_dict({**state, "scale": scale})


def seed_generators(seed, iteration):
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
def memory_advice(shape, accumulate):
    """Turn Paddle's report of a full device into advice.

    Args:
        shape: Of the step's images, ``[N, 3, H, W]``.
        accumulate: Parts that they are cut into.

    Raises:
        MemoryError: The device's memory is full.
    """
    try:
        yield
    except (MemoryError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and "out of memory" not in str(error).lower():
            raise
        images, _, height, width = shape
        size = images // accumulate
        smaller = max(1, size // 2)
        raise MemoryError(
            f"The device's memory is full with {size} images of {width}x{height} at a time: "
            f"try --batch_size {smaller} --accumulate {images // smaller}, which gives the same "
            "gradients, or --opts model.backbone.recompute=true."
        ) from error
