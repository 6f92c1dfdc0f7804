"""What of PaddleSeg 2.8 fails, most of it on Paddle 3, mended; to be deleted when PaddleSeg moves.

PaddleSeg's files stay as they are: what is here are subclasses, registered under the same names.
Of its cross-entropy ``models.CrossEntropyLoss`` takes the place.
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

ARITHMETIC = ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv")

_originals, _inside = {}, 0  # of type_promotion: Paddle's operators, and how many calculate
_lock = threading.Lock()


@contextlib.contextmanager
def type_promotion():
    """Within, ``+ - * /`` of a float, an integer or a boolean tensor cast the lesser of two kinds.

    Paddle 3 raises "Type promotion only support calculations between floating-point numbers";
    Paddle 2 cast the right one to the left one's kind, which where that was the integer lost the
    gradient, in ``RelaxBoundaryLoss``. All threads share the operators: the last to leave restores
    them.
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            for name in (f"__{operator}__" for operator in ARITHMETIC):
                _originals[name] = getattr(paddle.Tensor, name)
                setattr(paddle.Tensor, name, _casting(_originals[name]))
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for name, original in _originals.items():
                    setattr(paddle.Tensor, name, original)


def _casting(original):
    @functools.wraps(original)
    def operator(x, y):
        if isinstance(y, paddle.Tensor) and _kind(x) != _kind(y):
            x, y = (x.astype(y.dtype), y) if _kind(x) < _kind(y) else (x, y.astype(x.dtype))
        return original(x, y)

    return operator


def _kind(tensor):
    return 0 if tensor.dtype == paddle.bool else 1 + tensor.is_floating_point()


class TypePromotion:
    """A loss or a model that calculates with tensors of floats and of integers."""

    def forward(self, *args, **kwargs):
        with type_promotion():
            return super().forward(*args, **kwargs)


class DistillCrossEntropyLoss(TypePromotion, losses.DistillCrossEntropyLoss):
    """Divides by the mean of a float mask times ones like the integer label."""


class DualTaskLoss(TypePromotion, losses.DualTaskLoss):
    """Multiplies logits with a boolean mask."""


class OhemCrossEntropyLoss(TypePromotion, losses.OhemCrossEntropyLoss):
    """Adds an integer mask to probabilities, where more pixels are valid than must be kept."""


class OhemEdgeAttentionLoss(TypePromotion, losses.OhemEdgeAttentionLoss):
    """As ``OhemCrossEntropyLoss``."""


class PointCrossEntropyLoss(TypePromotion, losses.PointCrossEntropyLoss):
    """As ``DistillCrossEntropyLoss``."""


class RelaxBoundaryLoss(TypePromotion, losses.RelaxBoundaryLoss):
    """Multiplies probabilities with an integer one-hot label."""


class RMILoss(TypePromotion, losses.RMILoss):
    """Multiplies a one-hot label with a boolean mask."""


LOSSES = (
    DistillCrossEntropyLoss,
    DualTaskLoss,
    OhemCrossEntropyLoss,
    OhemEdgeAttentionLoss,
    PointCrossEntropyLoss,
    RelaxBoundaryLoss,
    RMILoss,
)


class DecoupledSegNet(TypePromotion, models.DecoupledSegNet):
    """Divides its flow by an image's sides."""


class SFNet(TypePromotion, models.SFNet):
    """As ``DecoupledSegNet``."""


MODELS = (DecoupledSegNet, SFNet)


class VisionTransformer(backbones.VisionTransformer):
    """Can be built without a file of weights, which its checkpoint takes the place of."""

    def init_weight(self):
        if self.pretrained is not None:
            super().init_weight()


def _of_mended(factory):
    names = {**factory.__globals__, "VisionTransformer": VisionTransformer}
    return types.FunctionType(factory.__code__, names, factory.__name__)


BACKBONES = (VisionTransformer,)
BACKBONES += tuple(_of_mended(getattr(backbones, n)) for n in dir(backbones) if n[:4] == "ViT_")


def patch_train_loop():
    """Mend PaddleSeg's own ``train`` and ``evaluate``; for ``plugin``, as our engine has no need.

    Paddle 2 gave a mean or a sum the shape ``[1]``, Paddle 3 gives it none: the one takes the first
    element of each loss, the other concatenates counts.
    """

    loop = sys.modules["paddleseg.core.train"]
    compute = loop.loss_computation
    loop.loss_computation = lambda *args, **kwargs: [
        loss.reshape([1]) for loss in compute(*args, **kwargs)
    ]
    metrics.calculate_area = calculate_area


def calculate_area(pred, label, num_classes, ignore_index=255):
    """Pixels of each class, int64 ``[num_classes]`` each: of both maps, the prediction, the label.

    Args:
        pred, label: Integer tensors ``[N, 1, H, W]`` or ``[N, H, W]``.
        num_classes: Number of classes.
        ignore_index: The label of pixels that do not count.
    """
    pred, label = pred.flatten().astype("int64"), label.flatten().astype("int64")
    valid = label != ignore_index
    return (
        _count(label[valid & (pred == label)], num_classes),
        _count(pred[valid], num_classes),
        _count(label[valid], num_classes),
    )


def _count(values, bins):
    return paddle.bincount(values[values < bins], minlength=bins)
