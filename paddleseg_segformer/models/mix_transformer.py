"""Mix Transformer (MiT), the hierarchical encoder of SegFormer.

Xie et al., "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
NeurIPS 2021, section 3.1. ``N`` is the batch size, ``h`` and ``w`` are the size of a stage's map.
"""

from __future__ import annotations

import functools
import itertools
import math
import numbers
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import paddle
from paddle import nn
from paddle.distributed.fleet.utils import recompute

from ..ops import (
    Conv2D,
    DropPath,
    GeluLinear,
    Linear,
    LinearToMap,
    drop_path_factors,
    map_rows,
    scaled_dot_product_attention,
)
from ..weights import BAND_RULES, Source, load_pretrained


class Variant(NamedTuple):
    """Sizes of a model of the paper (tables 1 and 6); tuples have one entry per stage."""

    embed_dims: tuple[int, ...]  # channels, C_i
    depths: tuple[int, ...]  # Transformer blocks, L_i
    num_heads: tuple[int, ...]  # attention heads, N_i
    sr_ratios: tuple[int, ...]  # spatial reduction of keys and values; its square is R_i
    decoder_width: int  # channels of the decode head, C
    params_millions: float  # of SegFormer with 150 classes


VARIANTS = {
    "B0": Variant((32, 64, 160, 256), (2, 2, 2, 2), (1, 2, 5, 8), (8, 4, 2, 1), 256, 3.8),
    "B1": Variant((64, 128, 320, 512), (2, 2, 2, 2), (1, 2, 5, 8), (8, 4, 2, 1), 256, 13.7),
    "B2": Variant((64, 128, 320, 512), (3, 4, 6, 3), (1, 2, 5, 8), (8, 4, 2, 1), 768, 27.5),
    "B3": Variant((64, 128, 320, 512), (3, 4, 18, 3), (1, 2, 5, 8), (8, 4, 2, 1), 768, 47.3),
    "B4": Variant((64, 128, 320, 512), (3, 8, 27, 3), (1, 2, 5, 8), (8, 4, 2, 1), 768, 64.1),
    "B5": Variant((64, 128, 320, 512), (3, 6, 40, 3), (1, 2, 5, 8), (8, 4, 2, 1), 768, 84.7),
}

# LayerNorm epsilons of the published checkpoints: of a block's and a stage's norms, and of those
# after the convolutions of patch embedding and sequence reduction.
BLOCK_EPSILON, CONV_EPSILON = 1e-6, 1e-5

MIN_IMAGE_SIZE = 32  # pixels per side: the stride of the last stage


class MixVisionTransformer(nn.Layer):
    """Mix Transformer: four stages of overlapped patch embedding and Transformer blocks.

    Args:
        in_channels: Channels of the images.
        embed_dims: Channels of each stage.
        depths: Transformer blocks of each stage.
        num_heads: Attention heads of each stage.
        mlp_ratios: Expansion ratio of the Mix-FFN in each stage.
        sr_ratios: Sequence reduction of each stage, per side; the paper's R is its square.
        qkv_bias: Whether the projections to query, key and value have biases.
        qk_scale: Scale of the attention scores; None means ``1 / sqrt(channels per head)``.
        drop_rate: Dropout rate after the linear layers of a block.
        attn_drop_rate: Dropout rate of the attention weights.
        drop_path_rate: Stochastic depth rate of the last block; it increases linearly from 0 in
            the first.
        norm_epsilon: Epsilon of all LayerNorms; None means those of the published checkpoints.
        pretrained: Weights to start from: a source as of ``load_weights``.
        recompute: Whether to recompute the activations of the blocks in the backward pass: less
            memory, a third more time, the same gradients.
        pretrained_bands: How weights for RGB images, also those of a whole model, start one for
            another number of bands: ``"rgb"`` or ``"mean"``, see ``adapt_bands``.
        img_size: Ignored, like the next two; accepted for configs of PaddleSeg's class.
        patch_size: Ignored.
        num_classes: Ignored.

    Attributes:
        feat_channels: Channels of the four feature maps.
        variant: Name of the variant that has these channels and depths, or None.

    Raises:
        ValueError: A list does not have four entries, the channels of a stage are not a multiple
            of its heads, ``qk_scale`` is not a number, or ``pretrained_bands`` is unknown.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        depths: Sequence[int] = (3, 4, 6, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        mlp_ratios: Sequence[float] = (4, 4, 4, 4),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        norm_epsilon: float | None = None,
        pretrained: Source | None = None,
        recompute: bool = False,
        pretrained_bands: str = "rgb",
        img_size: object = None,
        patch_size: object = None,
        num_classes: object = None,
    ) -> None:
        super().__init__()
        _check_stages(
            embed_dims=embed_dims,
            depths=depths,
            num_heads=num_heads,
            mlp_ratios=mlp_ratios,
            sr_ratios=sr_ratios,
        )
        if not isinstance(qk_scale, (numbers.Real, type(None))):
            raise ValueError(f"qk_scale is {qk_scale!r}; it must be a number, or None.")
        if pretrained_bands not in BAND_RULES:
            raise ValueError(
                f"pretrained_bands is {pretrained_bands!r}; it must be one of {BAND_RULES}."
            )
        self.feat_channels = list(embed_dims)
        self.variant = find_variant(embed_dims, depths)
        self.recompute, self.pretrained_bands = recompute, pretrained_bands
        self.has_dropout = drop_rate > 0 or attn_drop_rate > 0
        conv_epsilon = CONV_EPSILON if norm_epsilon is None else norm_epsilon
        block_epsilon = BLOCK_EPSILON if norm_epsilon is None else norm_epsilon
        attention_options = {
            "qkv_bias": qkv_bias,
            "qk_scale": qk_scale,
            "drop_rate": drop_rate,
            "attn_drop_rate": attn_drop_rate,
            "epsilon": conv_epsilon,
        }
        drop_path_rates = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        channels = [in_channels, *embed_dims]
        for i in range(4):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            embed = PatchEmbedding(channels[i], channels[i + 1], kernel, stride, conv_epsilon)
            blocks = [
                Block(
                    EfficientAttention(
                        embed_dims[i], num_heads[i], sr_ratios[i], **attention_options
                    ),
                    MixFFN(embed_dims[i], int(embed_dims[i] * mlp_ratios[i]), drop_rate),
                    embed_dims[i],
                    next(drop_path_rates),
                    block_epsilon,
                )
                for _ in range(depths[i])
            ]
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", nn.LayerList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(embed_dims[i], block_epsilon))
        self.apply(init_weights)
        load_pretrained(self, pretrained)

    def forward(self, x, factors=None):
        """Extract multi-scale features.

        Args:
            x: Float tensor ``[N, in_channels, H, W]``, normalized, with H and W at least 32.
            factors: The result of ``draw_drop_path_factors``; None draws them here.

        Returns:
            List of four float tensors ``[N, C_i, ceil(H / s), ceil(W / s)]``, for the strides
            s = 4, 8, 16, 32.
        """
        features, factors = [], iter(factors or self.draw_drop_path_factors(x))
        for i in range(1, 5):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                inputs = x, h, w, next(factors), next(factors)
                if self.recompute and self.training and not x.stop_gradient:
                    x = recompute_in_backward(block, *inputs)
                else:
                    x = block(*inputs)
            x = to_map(getattr(self, f"norm{i}")(x), h, w)
            features.append(x)
        return features

    def draw_drop_path_factors(self, x):
        """Draw the ``drop_path_factors`` of all blocks at once.

        Returns:
            List with two entries for each block, of attention and Mix-FFN; None where no sample is
            dropped.
        """
        blocks = itertools.chain.from_iterable(getattr(self, f"block{i}") for i in range(1, 5))
        rates = [rate for block in blocks for rate in [block.drop_path.rate] * 2]
        if not self.training or not any(rates):
            return [None] * len(rates)
        drawn = iter(drop_path_factors([rate for rate in rates if rate], x))
        return [next(drawn) if rate else None for rate in rates]

    def has_independent_samples(self):
        """Whether ``parallel_samples`` applies.

        Layers of others, hooks and dropout may depend on the batch or on the order of samples, and
        recomputing restores a random state that all threads share.
        """
        layers = self.sublayers(include_self=True)
        return (
            not self.recompute
            and not self.has_dropout
            and all(type(layer) in LAYER_TYPES for layer in layers)
            and not any(layer._forward_pre_hooks or layer._forward_post_hooks for layer in layers)
        )


class PatchEmbedding(nn.Layer):
    """Overlapped patch merging: a convolution whose kernel is larger than its stride."""

    def __init__(self, in_channels, channels, kernel, stride, epsilon):
        super().__init__()
        self.proj = Conv2D(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, epsilon)

    def forward(self, x):
        """``[N, in_channels, H, W]`` to tokens ``[N, h * w, channels]`` and their h and w."""
        x = self.proj(x)
        h, w = x.shape[2:]
        return self.norm(to_tokens(x)), h, w


class Block(nn.Layer):
    """Pre-norm Transformer block: efficient self-attention and Mix-FFN, each with a residual."""

    def __init__(self, attention, mlp, channels, drop_path_rate, epsilon):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, epsilon)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, epsilon)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x, h, w, attn_factors=None, mlp_factors=None):
        x = self.drop_path(x, self.attn(self.norm1(x), h, w), attn_factors)
        # The 3x3 convolution of the Mix-FFN sees a row above and below.
        channels = self.mlp.fc1.weight.shape[1]
        y = map_rows(lambda x, h: self.mlp(self.norm2(x), h, w), x, h, channels, halo=1)
        return self.drop_path(x, y, mlp_factors)


class EfficientAttention(nn.Layer):
    """Multi-head self-attention (equation 1) with sequence reduction of keys and values (2).

    Keys and values come from the map after a convolution whose kernel and stride are ``sr_ratio``.
    """

    def __init__(
        self, channels, num_heads, sr_ratio, qkv_bias, qk_scale, drop_rate, attn_drop_rate, epsilon
    ):
        super().__init__()
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.scale = qk_scale or (channels // num_heads) ** -0.5
        self.attn_drop_rate = attn_drop_rate
        self.q = Linear(channels, channels, bias_attr=None if qkv_bias else False)
        self.kv = Linear(channels, 2 * channels, bias_attr=None if qkv_bias else False)
        self.proj = Linear(channels, channels)
        self.proj_drop = nn.Dropout(drop_rate)
        if sr_ratio > 1:
            self.sr = Conv2D(channels, channels, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(channels, epsilon)

    def forward(self, x, h, w):
        reduced = self.norm(to_tokens(self.sr(to_map(x, h, w)))) if self.sr_ratio > 1 else x
        k, v = (self._split_heads(x) for x in self.kv(reduced).chunk(2, axis=-1))
        return self.proj_drop(map_rows(lambda x, _: self._attend(x, k, v), x, h, x.shape[2]))

    def _attend(self, x, k, v):
        """The queries' tokens ``[N, L, C]`` to tokens of the same shape."""
        q = self._split_heads(self.q(x))
        x = scaled_dot_product_attention(
            q, k, v, self.scale, dropout_p=self.attn_drop_rate, training=self.training
        )
        return self.proj(x.flatten(2))

    def _split_heads(self, x):
        """``[N, L, C]`` to ``[N, L, heads, C / heads]``."""
        return x.reshape([0, 0, self.num_heads, -1])


class MixFFN(nn.Layer):
    """``fc2(gelu(dwconv(fc1(x))))`` (equation 3).

    The zero padding of the 3x3 depthwise convolution provides positional information, in place of
    a positional encoding.
    """

    def __init__(self, channels, hidden_channels, drop_rate):
        super().__init__()
        self.fc1 = LinearToMap(channels, hidden_channels)
        dwconv = Conv2D(hidden_channels, hidden_channels, 3, padding=1, groups=hidden_channels)
        self.dwconv = nn.Sequential(("dwconv", dwconv))  # named as in checkpoints
        self.fc2 = GeluLinear(hidden_channels, channels, drop_rate)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x, h, w):
        x = self.dwconv(self.fc1(x, h, w))
        return self.drop(self.fc2(x))  # fc2 begins with the GELU


# Those of which has_independent_samples knows that they treat samples independently.
LAYER_TYPES = {
    MixVisionTransformer,
    PatchEmbedding,
    Block,
    EfficientAttention,
    MixFFN,
    Conv2D,
    DropPath,
    GeluLinear,
    Linear,
    LinearToMap,
    nn.Dropout,
    nn.LayerList,
    nn.LayerNorm,
    nn.Sequential,
}


def recompute_in_backward(block, *inputs):
    """``block(*inputs)``, computed again in the backward pass, with the same random numbers.

    Paddle 2.6 cannot restore the random state on a CPU itself. Its reentrant variant can, but does
    not work in ``DataParallel``.
    """
    state, called = paddle.get_rng_state(), False

    def run(*inputs):
        nonlocal called
        if not called:
            called = True
            return block(*inputs)
        current = paddle.get_rng_state()
        paddle.set_rng_state(state)
        try:
            return block(*inputs)
        finally:
            paddle.set_rng_state(current)

    return recompute(run, *inputs, preserve_rng_state=False, use_reentrant=False)


def to_tokens(x):
    """Map ``[N, C, h, w]`` to tokens ``[N, h * w, C]``."""
    return x.flatten(2).transpose([0, 2, 1])


def to_map(x, h, w):
    """Tokens ``[N, h * w, C]`` to map ``[N, C, h, w]``."""
    return x.transpose([0, 2, 1]).reshape([0, 0, h, w])


def init_weights(layer):
    """Initialize the weights of one layer: normal, std 0.02, if linear; He (fan-out) if conv."""
    if isinstance(layer, nn.Linear):
        # Not TruncatedNormal, which cuts at 2 in Paddle 3 (never reached), at 2 std in Paddle 2.6.
        nn.initializer.Normal(std=0.02)(layer.weight)
    elif isinstance(layer, nn.Conv2D):
        fan_out = np.prod(layer._kernel_size) * layer._out_channels // layer._groups
        nn.initializer.Normal(std=math.sqrt(2 / fan_out))(layer.weight)
    else:
        return
    if layer.bias is not None:
        nn.initializer.Constant(0.0)(layer.bias)


def find_variant(embed_dims: Sequence[int], depths: Sequence[int]) -> str | None:
    """The name of the variant with these channels and depths, ``"B0"`` to ``"B5"``, or None."""
    sizes = tuple(embed_dims), tuple(depths)
    return next((n for n, v in VARIANTS.items() if (v.embed_dims, v.depths) == sizes), None)


def variant_constructor(name: str) -> Callable[..., MixVisionTransformer]:
    """``MixVisionTransformer`` with the stages of a variant as defaults, named as in PaddleSeg."""
    embed_dims, depths, num_heads, sr_ratios, *_ = VARIANTS[name]
    constructor = functools.partial(
        MixVisionTransformer,
        embed_dims=embed_dims,
        depths=depths,
        num_heads=num_heads,
        sr_ratios=sr_ratios,
    )
    constructor.__name__ = constructor.__qualname__ = f"MixVisionTransformer_{name}"
    constructor.__doc__ = f"MiT-{name}: ``MixVisionTransformer`` with this variant's stages."
    return constructor


MixVisionTransformer_B0 = variant_constructor("B0")
MixVisionTransformer_B1 = variant_constructor("B1")
MixVisionTransformer_B2 = variant_constructor("B2")
MixVisionTransformer_B3 = variant_constructor("B3")
MixVisionTransformer_B4 = variant_constructor("B4")
MixVisionTransformer_B5 = variant_constructor("B5")


def _check_stages(**lists):
    for name, entries in lists.items():
        if np.shape(entries) != (4,):
            raise ValueError(f"{name} is {entries!r}; it must be a list of 4, one for each stage.")
    for channels, heads in zip(lists["embed_dims"], lists["num_heads"]):
        if heads < 1 or channels % heads:
            raise ValueError(
                f"num_heads does not fit embed_dims: {channels} channels are not a multiple of "
                f"{heads} heads."
            )
