"""Compatibility patches for PaddleSeg 2.8 on Paddle 3; remove once fixed upstream.

They are subclasses that are registered under the same names. PaddleSeg's cross-entropy is replaced
by ``models.CrossEntropyLoss`` instead.
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

    Paddle 3 raises "Type promotion only support calculations between floating-point numbers".
    Paddle 2 cast the right operand to the left one's type, which lost the gradient of
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
    """0 for boolean, 1 for integer, 2 for float tensors."""
    return 0 if tensor.dtype == paddle.bool else 1 + tensor.is_floating_point()


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
# Both divide a float flow by the integer size of the image.
MODELS = tuple(map(_with_type_promotion, (models.DecoupledSegNet, models.SFNet)))


class VisionTransformer(backbones.VisionTransformer):
    """Can be built without ``pretrained`` weights, as before loading a checkpoint."""

    def init_weight(self):
        if self.pretrained is not None:
            super().init_weight()


def _with_patched_class(factory):
    """A copy of a factory function that builds the patched ``VisionTransformer``."""
    names = {**factory.__globals__, "VisionTransformer": VisionTransformer}
    return types.FunctionType(factory.__code__, names, factory.__name__)


_VITS = [getattr(backbones, name) for name in dir(backbones) if name.startswith("ViT_")]
BACKBONES = (VisionTransformer, *map(_with_patched_class, _VITS))


def patch_train_loop():
    """Patch PaddleSeg's own ``train`` and ``evaluate``, for ``compat_run``.

    Means and sums had shape ``[1]`` in Paddle 2 and have ``[]`` in Paddle 3, but ``train`` indexes
    losses and ``evaluate`` concatenates counts.
    """
    loop = sys.modules["paddleseg.core.train"]
    compute = loop.loss_computation
    loop.loss_computation = lambda *args, **options: [
        loss.reshape([1]) for loss in compute(*args, **options)
    ]
    metrics.calculate_area = calculate_area


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
