"""The graph that is exported."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..models import SegFormer
from ..ops import resize_bilinear

OUTPUT_OPS = ("argmax", "softmax", "none")
"""What a graph gives: label maps, probabilities or logits."""


class ExportModel(nn.Layer):
    """A model in evaluation, from images to label maps, probabilities or logits.

    Args:
        model: A PaddleSeg model.
        output_op: ``"argmax"`` gives int32 label maps ``[N, H, W]``, ``"softmax"`` and ``"none"``
            float tensors ``[N, C, H, W]``.
        normalize: PaddleSeg's ``Normalize``, where the graph is to do that, too; or None.
    """

    def __init__(self, model, output_op, normalize=None):
        super().__init__()
        self.folds = isinstance(model, SegFormer)
        self.model = FoldedSegFormer(model) if self.folds else model
        self.output_op, self.normalizes = output_op, normalize is not None
        if self.normalizes:
            mean, std = (paddle.to_tensor(v, "float32") for v in (normalize.mean, normalize.std))
            self.register_buffer("factor", (1 / (255 * std)).reshape([1, -1, 1, 1]))
            self.register_buffer("offset", (-mean / std).reshape([1, -1, 1, 1]))
        self.eval()

    def prepare(self, x):
        """An image as the model takes it: normalized here, where the graph does that."""
        return x * self.factor + self.offset if self.normalizes else x

    def forward(self, x):
        """``[N, 3, H, W]``, RGB, to what ``output_op`` says."""
        x = self.prepare(x)
        logits = self.model(x) if self.folds else self.model(x)[0]
        if self.output_op == "argmax":
            return logits.argmax(axis=1, dtype="int32")
        return F.softmax(logits, axis=1) if self.output_op == "softmax" else logits


class FoldedSegFormer(nn.Layer):
    """A SegFormer's function in evaluation, in fewer operators.

    In ``relu(BN(sum_i up(A_i p_i(x_i))))`` the fuse convolution's part A_i, the linear projection
    p_i and BatchNorm's factor are one 1x1 convolution for each stage, and all constants are one
    bias. Where p_i is a convolution with BatchNorm and ReLU, these are one convolution, too.

    Args:
        model: ``SegFormer``; its backbone is shared, its head copied.
    """

    def __init__(self, model):
        super().__init__()
        self.backbone, self.align_corners = model.backbone, model.align_corners
        factor, constant = _affine(model.linear_fuse._batch_norm)
        parts = model.linear_fuse._conv.weight.flatten(1).chunk(4, axis=1)
        self.projections, self.stages = nn.LayerList(), nn.LayerList()
        for i, part in sorted(zip(model.fuse_order, parts)):
            layer, weight = getattr(model, f"linear_c{i}"), part * factor.unsqueeze(1)
            if model.stage_projection == "linear":
                constant = constant + paddle.mv(weight, layer.proj.bias)
                weight = paddle.matmul(weight, layer.proj.weight, transpose_y=True)
            else:
                own_factor, own_constant = _affine(layer._batch_norm)
                own_weight = layer._conv.weight.flatten(1) * own_factor.unsqueeze(1)
                self.projections.append(_pointwise(own_weight, own_constant))
            # No resize changes a constant: it is added where the map is smallest.
            self.stages.append(_pointwise(weight, constant if i == 4 else None))
        self.classifier = _pointwise(model.linear_pred.weight.flatten(1), model.linear_pred.bias)

    def forward(self, x):
        """Segment images: ``[N, 3, H, W]`` to logits ``[N, num_classes, H, W]``."""
        features = self.backbone(x)
        if self.projections:
            features = [F.relu(p(f)) for p, f in zip(self.projections, features)]
        fused, *others = (stage(f) for stage, f in zip(self.stages, features))
        size = paddle.shape(fused)[2:]
        for other in others:
            fused = fused + resize_bilinear(other, size, self.align_corners)
        logits = self.classifier(F.relu(fused))
        return resize_bilinear(logits, paddle.shape(x)[2:], self.align_corners)


def _affine(norm):
    """The factor and the offset of each channel that a BatchNorm is in evaluation."""
    factor = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
    return factor, norm.bias - factor * norm._mean


def _pointwise(weight, bias):
    """A 1x1 convolution of a matrix ``[out, in]`` and a vector, or None."""
    layer = nn.Conv2D(
        weight.shape[1], weight.shape[0], 1, bias_attr=None if bias is not None else False
    )
    layer.weight.set_value(weight.unsqueeze([2, 3]))
    if bias is not None:
        layer.bias.set_value(bias)
    return layer
