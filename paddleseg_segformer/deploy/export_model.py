"""The layer that is exported: a model, with optional normalization and argmax or softmax."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..models import SegFormer
from ..ops import resize_bilinear

OUTPUT_OPS = ("argmax", "softmax", "none")
"""The last operator of a graph: it returns label maps, probabilities or logits."""


class ExportModel(nn.Layer):
    """A model in evaluation mode, from images to label maps, probabilities or logits.

    Args:
        model: A PaddleSeg model.
        output_op: ``"argmax"`` for int32 label maps ``[N, H, W]``; ``"softmax"`` or ``"none"``
            (logits) for float32 tensors ``[N, classes, H, W]``.
        normalize: PaddleSeg's ``Normalize``, to be included in the graph; or None.
    """

    def __init__(self, model, output_op, normalize=None):
        super().__init__()
        self.is_folded = isinstance(model, SegFormer)
        self.model = FoldedSegFormer(model) if self.is_folded else model
        self.output_op, self.normalizes = output_op, normalize is not None
        if self.normalizes:
            mean, std = (paddle.to_tensor(v, "float32") for v in (normalize.mean, normalize.std))
            self.register_buffer("factor", (1 / (255 * std)).reshape([1, -1, 1, 1]))
            self.register_buffer("offset", (-mean / std).reshape([1, -1, 1, 1]))
        self.eval()

    def prepare(self, x):
        """The model's input: normalized here if the graph includes that."""
        return x * self.factor + self.offset if self.normalizes else x

    def forward(self, x):
        """Segment images, float32 ``[N, C, H, W]``; see ``output_op`` for the result."""
        x = self.prepare(x)
        logits = self.model(x) if self.is_folded else self.model(x)[0]
        if self.output_op == "argmax":
            return logits.argmax(axis=1, dtype="int32")
        return F.softmax(logits, axis=1) if self.output_op == "softmax" else logits


class FoldedSegFormer(nn.Layer):
    """A SegFormer in evaluation mode with the linear layers of its decode head folded.

    The head is ``relu(BN(sum_i up(A_i p_i(x_i))))``, with A_i the slice of the fuse convolution for
    stage i, p_i the stage's projection and ``up`` the bilinear upsampling. A 1x1 convolution
    commutes with ``up``, so A_i, a linear p_i and BatchNorm's scale become one 1x1 convolution per
    stage, and all biases one bias. If p_i is a convolution with BatchNorm and ReLU, these become
    one convolution, too. The backbone is shared, the weights of the head are copied.
    """

    def __init__(self, model):
        super().__init__()
        self.backbone, self.align_corners = model.backbone, model.align_corners
        scale, bias = _scale_and_bias(model.linear_fuse._batch_norm)
        fuse = model.linear_fuse._conv.weight.flatten(1).chunk(4, axis=1)
        self.projections, self.stages = nn.LayerList(), nn.LayerList()
        for i, weight in sorted(zip(model.fuse_order, fuse)):
            layer, weight = getattr(model, f"linear_c{i}"), weight * scale.unsqueeze(1)
            if model.stage_projection == "linear":
                bias = bias + paddle.mv(weight, layer.proj.bias)
                weight = paddle.matmul(weight, layer.proj.weight, transpose_y=True)
            else:
                norm_scale, norm_bias = _scale_and_bias(layer._batch_norm)
                projection = layer._conv.weight.flatten(1) * norm_scale.unsqueeze(1)
                self.projections.append(_conv1x1(projection, norm_bias))
            # Upsampling does not change a constant, so the bias is added to the smallest map.
            self.stages.append(_conv1x1(weight, bias if i == 4 else None))
        self.classifier = _conv1x1(model.linear_pred.weight.flatten(1), model.linear_pred.bias)

    def forward(self, x):
        """Segment images: ``[N, C, H, W]`` to logits ``[N, num_classes, H, W]``."""
        features = self.backbone(x)
        if self.projections:
            features = [F.relu(p(f)) for p, f in zip(self.projections, features)]
        fused, *others = (stage(f) for stage, f in zip(self.stages, features))
        size = paddle.shape(fused)[2:]
        for other in others:
            fused = fused + resize_bilinear(other, size, self.align_corners)
        logits = self.classifier(F.relu(fused))
        return resize_bilinear(logits, paddle.shape(x)[2:], self.align_corners)


def _scale_and_bias(norm):
    """The per-channel scale and bias of a BatchNorm in evaluation mode."""
    scale = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
    return scale, norm.bias - scale * norm._mean


def _conv1x1(weight, bias):
    """A 1x1 convolution with a weight ``[out, in]`` and a bias ``[out]`` or None."""
    layer = nn.Conv2D(
        weight.shape[1], weight.shape[0], 1, bias_attr=None if bias is not None else False
    )
    layer.weight.set_value(weight.unsqueeze([2, 3]))
    if bias is not None:
        layer.bias.set_value(bias)
    return layer
