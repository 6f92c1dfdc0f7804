"""The graph that is exported."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..models import FoldedSegFormer, SegFormer

OUTPUT_OPS = ("argmax", "softmax", "none")
"""What a graph gives: label maps, probabilities or logits."""


class Graph(nn.Layer):
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
        """An image as the model takes it: normalised here, where the graph does that."""
        return x * self.factor + self.offset if self.normalizes else x

    def forward(self, x):
        """``[N, 3, H, W]``, RGB, to what ``output_op`` says."""
        x = self.prepare(x)
        logits = self.model(x) if self.folds else self.model(x)[0]
        if self.output_op == "argmax":
            return logits.argmax(axis=1, dtype="int32")
        return F.softmax(logits, axis=1) if self.output_op == "softmax" else logits
