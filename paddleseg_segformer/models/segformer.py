"""SegFormer: a Mix Transformer and the all-MLP decode head (Xie et al., NeurIPS 2021, section 3.2).

The head's usual form brings every stage to the decoder width E, resizes all of them to stride 4,
concatenates the 4E channels and fuses them with a 1x1 convolution. Bilinear resizing acts on each
channel alone and its weights sum to 1, so it commutes with 1x1 convolutions. With the fuse
convolution written as [A4 A3 A2 A1] and stage i's projection as (W_i, b_i),

    fuse(concat(up(W_i x_i + b_i))) = sum up((A_i W_i) x_i) + sum A_i b_i

is the same function of the same parameters, computed at each stage's own size.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import add_bias, resize_bilinear
from ..weights import Source, load_pretrained
from .losses import CrossEntropyLoss
from .mix_transformer import init_weights

STAGE_PROJECTIONS = ("linear", "conv_bn_relu")


class SegFormer(nn.Layer):
    """SegFormer for semantic segmentation.

    In Paddle 3.3 a second backward pass through the same graph (``retain_graph``) ends the process.

    Args:
        num_classes: Number of classes.
        backbone: A layer with ``feat_channels`` that returns four maps at strides 4, 8, 16, 32.
        embedding_dim: Decoder width E.
        stage_projection: ``"linear"``, the paper's, or ``"conv_bn_relu"``, mmsegmentation's and
            PaddleViT's: 1x1 convolution, BatchNorm and ReLU before each resize.
        dropout: Rate at which whole channels are dropped before the classifier.
        align_corners: How feature maps and logits are resized; see ``resize_bilinear``.
        pretrained: Weights of the whole model to start from, as in ``load_weights``, or a URL.

    Raises:
        ValueError: ``stage_projection`` is neither of the two.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer,
        embedding_dim: int,
        stage_projection: str = "linear",
        dropout: float = 0.1,
        align_corners: bool = False,
        pretrained: Source | None = None,
    ) -> None:
        super().__init__()
        if stage_projection not in STAGE_PROJECTIONS:
            raise ValueError(
                f"stage_projection is {stage_projection!r}; it must be one of {STAGE_PROJECTIONS}."
            )
        self.backbone = backbone
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.stage_projection = stage_projection
        self.resizes_logits_in_training = True
        # The stages in the order in which the variant's fuse convolution takes them.
        self.fuse_order = (4, 3, 2, 1) if stage_projection == "linear" else (1, 2, 3, 4)
        projection = Projection if stage_projection == "linear" else ConvBN
        head = []
        for i in self.fuse_order:
            layer = projection(backbone.feat_channels[i - 1], embedding_dim)
            setattr(self, f"linear_c{i}", layer)
            head.append(layer)
        self.linear_fuse = ConvBN(4 * embedding_dim, embedding_dim)
        self.dropout = nn.Dropout2D(dropout)
        self.linear_pred = nn.Conv2D(embedding_dim, num_classes, 1)
        for layer in (*head, self.linear_fuse, self.linear_pred):
            layer.apply(init_weights)
        load_pretrained(self, pretrained)

    def forward(self, x):
        """Segment images.

        Args:
            x: Float tensor ``[N, 3, H, W]``, normalized, with H and W at least 32.

        Returns:
            A list with one float tensor of logits, ``[N, num_classes, H, W]``; in training, and
            where ``resizes_logits_in_training`` was set to False because the loss resizes them,
            ``[N, num_classes, ceil(H / 4), ceil(W / 4)]``.
        """
        logits = self.decode(self.backbone(x))
        if self.training and not self.resizes_logits_in_training:
            return [logits]
        return [resize_bilinear(logits, x.shape[2:], self.align_corners)]

    def leave_resizing_to(self, losses):
        """Set ``resizes_logits_in_training`` to False if all of the losses resize logits alike."""
        theirs = all(isinstance(loss, CrossEntropyLoss) for loss in losses)
        self.resizes_logits_in_training = self.align_corners or not theirs

    def decode(self, features):
        """The backbone's four maps to logits ``[N, num_classes, h, w]`` at stride 4."""
        fuse = self.linear_fuse._conv.weight.flatten(1).chunk(4, axis=1)
        fuse = dict(zip(self.fuse_order, fuse))
        fused = self._project(1, features[0], fuse)
        for i in (2, 3, 4):
            x = self._project(i, features[i - 1], fuse)
            fused = fused.add_(resize_bilinear(x, fused.shape[2:], self.align_corners))
        return self._classify(F.relu(self.linear_fuse._batch_norm(fused)))

    def _project(self, i, x, fuse):
        """Stage i's share of what the fuse convolution returns, at the stage's own size."""
        layer = getattr(self, f"linear_c{i}")
        if self.stage_projection != "linear":
            return F.conv2d(F.relu(layer(x)), fuse[i][:, :, None, None])
        weight = paddle.matmul(fuse[i], layer.proj.weight, transpose_y=True)
        # No resize changes a constant: where the map is smallest, all stages' are added at once.
        bias = self._constants(fuse) if i == 4 else None
        return F.conv2d(x, weight[:, :, None, None], bias)

    def _constants(self, fuse):
        """The sum of A_j b_j over the stages."""
        biases = {j: getattr(self, f"linear_c{j}").proj.bias for j in fuse}
        return sum(paddle.mv(fuse[j], biases[j]) for j in fuse)

    def _classify(self, x):
        """Dropout2D and the classifier.

        A channel is dropped from the sample's own copy of the classifier's weights, the same as
        from the map, which is some hundred times larger.
        """
        n, c, h, w = x.shape
        weight = self.linear_pred.weight.flatten(1)
        weight = weight * self.dropout(paddle.ones([n, c, 1, 1])).reshape([n, 1, c])
        logits = add_bias(paddle.matmul(weight, x.flatten(2)), self.linear_pred.bias, axis=1)
        return logits.reshape([n, -1, h, w])


class Projection(nn.Layer):
    """A stage's linear projection, held under the name that checkpoints give it."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self.proj = nn.Linear(in_channels, channels)


class ConvBN(nn.Layer):
    """1x1 convolution without bias, then BatchNorm."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self._conv = nn.Conv2D(in_channels, channels, 1, bias_attr=False)
        self._batch_norm = nn.BatchNorm2D(channels)

    def forward(self, x):
        return self._batch_norm(self._conv(x))
