"""SegFormer: Mix Transformer and the all-MLP decode head (Xie et al., NeurIPS 2021, section 3.2).

Equation 4 projects the features of every stage to E channels, upsamples them to stride 4,
concatenates the 4E channels and fuses them with a 1x1 convolution. Bilinear resizing acts on each
channel separately, with weights that sum to 1, so it commutes with 1x1 convolutions. With the
fuse convolution split by stage into [A4 A3 A2 A1], and the projection of stage i as (W_i, b_i),

    fuse(concat(up(W_i x_i + b_i))) = sum up((A_i W_i) x_i) + sum A_i b_i

The right side is the same function of the same parameters, but does its convolutions at each
stage's resolution and needs no concatenation.
"""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import DropoutConv1x1, parallel_samples, resize_and_sum, resize_bilinear
from ..weights import Source, load_pretrained
from .mix_transformer import VARIANTS, MixVisionTransformer, init_weights, variant_constructor

STAGE_PROJECTIONS = ("linear", "conv_bn_relu")
CONV_BN_RELU_WIDTH = 256  # the decoder width of all of mmsegmentation's variants


class SegFormer(nn.Layer):
    """SegFormer for semantic segmentation.

    Args:
        num_classes: Number of classes.
        backbone: A variant's name, ``"B0"`` to ``"B5"``, or a layer with ``feat_channels`` that
            returns four feature maps at strides 4, 8, 16, 32.
        embedding_dim: Decoder width E; None means that of the backbone's variant.
        stage_projection: ``"linear"`` as in the paper, or ``"conv_bn_relu"`` as in mmsegmentation
            and PaddleViT: 1x1 convolution, BatchNorm and ReLU before each resize.
        dropout: Dropout rate of the channels before the classifier.
        align_corners: How feature maps and logits are resized; see ``resize_bilinear``.
        pretrained: Weights of the whole model to start from: a source as of ``load_weights``.

    Raises:
        ValueError: ``backbone`` or ``stage_projection`` is unknown, or ``embedding_dim`` is None
            for a backbone that is not one of the variants.

    Limitation: call ``backward()`` once per graph; with ``retain_graph``, Paddle 3.3 crashes.
    """

    def __init__(
        self,
        num_classes: int,
        backbone: nn.Layer | str,
        embedding_dim: int | None = None,
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
        linear, names = stage_projection == "linear", ", ".join(VARIANTS)
        if isinstance(backbone, str):
            if backbone not in VARIANTS:
                raise ValueError(
                    f"backbone is {backbone!r}; it must be a layer, or one of {names}."
                )
            backbone = variant_constructor(backbone)()
        if embedding_dim is None:
            variant = VARIANTS.get(getattr(backbone, "variant", None))
            if variant is None:
                raise ValueError(
                    f"embedding_dim is missing, and the backbone {type(backbone).__name__} is not "
                    f"one of the variants {names}; give the decoder width."
                )
            embedding_dim = variant.decoder_width if linear else CONV_BN_RELU_WIDTH
        self.backbone = backbone
        self.num_classes = num_classes
        self.align_corners = align_corners
        self.stage_projection = stage_projection
        # The stages in the order in which the fuse convolution of checkpoints concatenates them.
        self.fuse_order = (4, 3, 2, 1) if linear else (1, 2, 3, 4)
        for i in self.fuse_order:
            channels = backbone.feat_channels[i - 1]
            if linear:
                layer = nn.Sequential(("proj", nn.Linear(channels, embedding_dim)))
            else:
                layer = ConvBN(channels, embedding_dim)
            setattr(self, f"linear_c{i}", layer)
        self.linear_fuse = ConvBN(4 * embedding_dim, embedding_dim)
        self.linear_pred = DropoutConv1x1(embedding_dim, num_classes, dropout)
        for name, layer in self.named_children():
            if name != "backbone":
                layer.apply(init_weights)
        load_pretrained(self, pretrained)

    def forward(self, x, resize_logits=True):
        """Segment images.

        Args:
            x: Float tensor ``[N, C, H, W]``, normalized, with H and W at least 32.
            resize_logits: Whether to resize the logits to the images' size.

        Returns:
            List with one float tensor, the logits ``[N, num_classes, H, W]``; without
            ``resize_logits``, ``[N, num_classes, ceil(H / 4), ceil(W / 4)]``. In mixed precision
            they are float32.
        """
        logits = self.decode(self._extract_features(x))
        if logits.dtype in (paddle.float16, paddle.bfloat16):  # the resize and losses need more
            logits = logits.astype("float32")
        if resize_logits:
            logits = resize_bilinear(logits, x.shape[2:], self.align_corners)
        return [logits]

    def decode(self, features):
        """The decode head: logits ``[N, num_classes, h, w]`` at stride 4 from the four features."""
        return self._classify(self._fuse(features))

    def _extract_features(self, x):
        """The backbone's features, with the samples in parallel where possible.

        The decode head takes the whole batch: most of its time are matrix products, which use all
        threads, and the memory that several threads free at a time is reused less well.
        """
        backbone = self.backbone
        if not isinstance(backbone, MixVisionTransformer) or not backbone.has_independent_samples():
            return backbone(x)
        factors = backbone.draw_drop_path_factors(x)  # whose order threads must not change
        return parallel_samples(MixVisionTransformer.forward, backbone, x, factors)

    def _fuse(self, features):
        """The fused map before BatchNorm."""
        fuse_weight = self.linear_fuse._conv.weight.flatten(1)
        weights = dict(zip(self.fuse_order, fuse_weight.chunk(4, axis=1)))  # A_i
        fused, *small = (
            self._project_and_fuse(i, features[i - 1], weights[i]) for i in range(1, 5)
        )
        if self.stage_projection == "linear":
            # Resizing does not change constants: all biases are added to the smallest map. With
            # AMP, it is in half precision; the sum must not be promoted to float32.
            biases = paddle.concat([getattr(self, f"linear_c{i}").proj.bias for i in weights])
            bias = paddle.mv(fuse_weight, biases)  # the sum of A_i b_i
            small[-1] = small[-1] + bias.astype(small[-1].dtype).reshape([1, -1, 1, 1])
        return fused.add_(resize_and_sum(small, fused.shape[2:], self.align_corners))

    def _classify(self, fused):
        return self.linear_pred(fused, self.linear_fuse._batch_norm)

    def _project_and_fuse(self, i, x, fuse_weight):
        """Stage i's contribution to the fuse convolution, before upsampling, without bias."""
        layer = getattr(self, f"linear_c{i}")
        if self.stage_projection != "linear":
            return F.conv2d(F.relu(layer(x)), fuse_weight[:, :, None, None])
        weight = paddle.matmul(fuse_weight, layer.proj.weight, transpose_y=True)
        return F.conv2d(x, weight[:, :, None, None])


class ConvBN(nn.Layer):
    """1x1 convolution without bias, then BatchNorm."""

    def __init__(self, in_channels, channels):
        super().__init__()
        self._conv = nn.Conv2D(in_channels, channels, 1, bias_attr=False)
        self._batch_norm = nn.BatchNorm2D(channels)

    def forward(self, x):
        return self._batch_norm(self._conv(x))
