"""Compatibility patches for PaddleSeg 2.8.0, 2.9 and its development branch on Paddle 3.

Each takes effect only where the installed PaddleSeg needs it: an operator that would combine
different types, a function that fails. Remove a patch once no supported release needs it.

The components are subclasses that are registered under the same names. PaddleSeg's cross-entropy is
replaced by ``models.CrossEntropyLoss`` instead.
"""

import contextlib
import functools
import sys
import threading
import types

import paddle
from paddleseg import models
from paddleseg.models import backbones, losses
from paddleseg.utils import metrics

OPERATORS = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv")

# State of type_promotion, shared by all threads like the operators that it replaces.
_originals, _active_count = {}, 0
_lock = threading.Lock()


@contextlib.contextmanager
def type_promotion():
    """Promote boolean to integer and integer to float tensors in ``+ - * /`` within the context.

    Operands of one type are left alone, and so is a PaddleSeg that casts them itself, as it does
    since 2.9.1. Paddle 3 raises "Type promotion only support calculations between floating-point
    numbers". Paddle 2 cast the right operand to the left one's type, which lost the gradient of
    ``RelaxBoundaryLoss``, where the left one is an integer. The last thread to leave the context
    restores the operators.
    """
    global _active_count
    with _lock:
        _active_count += 1
        if _active_count == 1:
            for name in (f"__{operator}__" for operator in OPERATORS):
                _originals[name] = getattr(paddle.Tensor, name)
                setattr(paddle.Tensor, name, _promoting(_originals[name]))
    try:
        yield
    finally:
        with _lock:
            _active_count -= 1
            if _active_count == 0:
                for name, original in _originals.items():
                    setattr(paddle.Tensor, name, original)


def _promoting(original):
    @functools.wraps(original)
    def operator(x, y):
        if isinstance(y, paddle.Tensor) and _rank(x) != _rank(y):
            x, y = (x.astype(y.dtype), y) if _rank(x) < _rank(y) else (x, y.astype(x.dtype))
        return original(x, y)

    return operator


def _rank(tensor):
    """0 for boolean, 1 for integer, 2 for int64, 3 for float tensors."""
    if tensor.is_floating_point():
        return 3
    return {paddle.bool: 0, paddle.int64: 2}.get(tensor.dtype, 1)


class TypePromotion:
    """Mixin for losses and models that combine float, integer and boolean tensors."""

    def forward(self, *args, **kwargs):
        with type_promotion():
            return super().forward(*args, **kwargs)


def _with_type_promotion(component):
    return type(component.__name__, (TypePromotion, component), {"__doc__": component.__doc__})


_LOSSES = (
    losses.DistillCrossEntropyLoss,  # multiplies a float mask by ones in the label's type
    losses.DualTaskLoss,  # multiplies logits by a boolean mask
    losses.OhemCrossEntropyLoss,  # may add an integer mask to probabilities
    losses.OhemEdgeAttentionLoss,  # likewise
    losses.PointCrossEntropyLoss,  # as DistillCrossEntropyLoss
    losses.RelaxBoundaryLoss,  # multiplies probabilities by an integer one-hot label
    losses.RMILoss,  # multiplies a one-hot label by a boolean mask
)
LOSSES = tuple(map(_with_type_promotion, _LOSSES))
_MODELS = (
    models.DecoupledSegNet,  # divides a float flow by the integer size of the image
    models.ISANet,  # after 2.8.0: subtracts an int64 size from an int32 one
    models.SFNet,  # as DecoupledSegNet
)
MODELS = tuple(map(_with_type_promotion, _MODELS))


class VisionTransformer(backbones.VisionTransformer):
    """Can be built without ``pretrained`` weights, as before loading a checkpoint."""

    def init_weight(self):
        try:
            super().init_weight()
        except TypeError:  # of os.path.exists(None)
            if self.pretrained is not None:
                raise


def _with_patched_class(factory):
    """A copy of a factory function that builds the patched ``VisionTransformer``."""
    names = {**factory.__globals__, "VisionTransformer": VisionTransformer}
    return types.FunctionType(factory.__code__, names, factory.__name__)


_VITS = [getattr(backbones, name) for name in dir(backbones) if name.startswith("ViT_")]
BACKBONES = (VisionTransformer, *map(_with_patched_class, _VITS))


def patch_train_loop():
    """Patch PaddleSeg's own ``train`` and ``evaluate`` where they fail, for ``compat_run``.

    Means and sums had shape ``[1]`` in Paddle 2 and have ``[]`` in Paddle 3, but in PaddleSeg 2.8.0
    ``train`` indexes losses and ``evaluate`` concatenates counts. Later releases do not.
    """
    loop = sys.modules["paddleseg.core.train"]
    if "numpy" in loop.train.__code__.co_names:  # it reads losses as arrays, later ones as floats
        compute = loop.loss_computation
        loop.loss_computation = lambda *args, **options: [
            loss.reshape([1]) for loss in compute(*args, **options)
        ]
    metrics.calculate_area = _where_it_fails(metrics.calculate_area)


def _where_it_fails(original):
    """``original``, or ``calculate_area`` if ``original`` fails to count one pixel.

    That is tried at the first call: no operator may run before processes are forked. Options that
    PaddleSeg 2.8.0 does not have, such as ``use_multilabel``, are left to ``original``.
    """

    @functools.cache
    def fails():
        pixel = paddle.zeros([1, 1, 1], dtype="int64")
        try:
            original(pixel, pixel, 2)
        except ValueError:
            return True
        return False

    @functools.wraps(original)
    def count(pred, label, num_classes, ignore_index=255, **options):
        if any(options.values()) or not fails():
            return original(pred, label, num_classes, ignore_index, **options)
        return calculate_area(pred, label, num_classes, ignore_index)

    return count


def calculate_area(pred, label, num_classes, ignore_index=255):
    """Pixels of each class in the intersection, the prediction and the label: int64 tensors.

    Args:
        pred, label: Integer tensors ``[N, 1, H, W]`` or ``[N, H, W]``.
        num_classes: Number of classes, the length of the results.
        ignore_index: Label of the pixels that are not counted.
    """
    pred, label = pred.flatten().astype("int64"), label.flatten().astype("int64")
    valid = label != ignore_index
    areas = label[valid & (pred == label)], pred[valid], label[valid]
    return tuple(paddle.bincount(a[a < num_classes], minlength=num_classes) for a in areas)
