"""Mix Transformer (MiT), SegFormer's encoder: Xie et al., NeurIPS 2021, section 3.1."""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Callable, Sequence

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.device.cuda import get_device_capability
from paddle.distributed.fleet.utils import recompute as recompute_in_backward

from ..ops import add_bias, gelu_matmul, scale_samples
from ..weights import SIZES, Source, load_pretrained

# LayerNorm epsilons of the paper's checkpoints: block and stage norms, then the norms that follow
# the convolutions of patch embedding and sequence reduction.
BLOCK_EPSILON, CONV_EPSILON = 1e-6, 1e-5

MIN_IMAGE_SIZE = 32  # pixels a side of an image: the last stage's stride

# Attention scores that are computed at once where no gradient is wanted, a sample and head.
MAX_SCORES = 1 << 20

# The types for which Paddle has a fused attention operator.
FUSED_TYPES = (paddle.float16, paddle.bfloat16)


class MixVisionTransformer(nn.Layer):
    """MiT: four stages, each an overlapped patch embedding and a run of Transformer blocks.

    Args:
        in_channels: Channels of the images.
        embed_dims: Channels of each stage, ``C_i``.
        depths: Blocks in each stage.
        num_heads: Attention heads in each stage.
        mlp_ratios: Expansion of each stage's Mix-FFN.
        sr_ratios: Sequence reduction ``R`` of each stage, per side (the paper's is its square).
        qkv_bias: Whether query, key and value have biases.
        qk_scale: Scale of the attention scores; None means ``1 / sqrt(channels per head)``.
        drop_rate: Dropout after each projection of a block.
        attn_drop_rate: Dropout of attention weights.
        drop_path_rate: Stochastic depth of the last block; it rises linearly from 0 at the first.
        norm_epsilon: LayerNorm's epsilon everywhere; None means the paper's own mix.
        pretrained: Weights to start from, as in ``load_weights``, or a URL.
        recompute: Whether a block's activations are computed again in the backward pass, not kept
            for it: less memory, a third more time, the same gradients.
        img_size: Unused, as the next two, so that a configuration for PaddleSeg's class works.
        patch_size: Unused.
        num_classes: Unused.

    ``feat_channels`` holds the channels of the four feature maps.

    Raises:
        ValueError: A list has not one entry a stage, a stage's channels are no multiple of its
            heads, or ``qk_scale`` is no number.
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
        self.feat_channels = list(embed_dims)
        self.recompute = recompute
        conv_epsilon = CONV_EPSILON if norm_epsilon is None else norm_epsilon
        block_epsilon = BLOCK_EPSILON if norm_epsilon is None else norm_epsilon
        attention = {
            "qkv_bias": qkv_bias,
            "qk_scale": qk_scale,
            "drop_rate": drop_rate,
            "attn_drop_rate": attn_drop_rate,
            "epsilon": conv_epsilon,
        }
        drop_path = iter(np.linspace(0, drop_path_rate, sum(depths)).tolist())
        channels = [in_channels, *embed_dims]
        for i in range(4):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            embed = PatchEmbedding(channels[i], channels[i + 1], kernel, stride, conv_epsilon)
            blocks = [
                Block(
                    EfficientAttention(embed_dims[i], num_heads[i], sr_ratios[i], **attention),
                    MixFFN(embed_dims[i], int(embed_dims[i] * mlp_ratios[i]), drop_rate),
                    embed_dims[i],
                    next(drop_path),
                    block_epsilon,
                )
                for _ in range(depths[i])
            ]
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"block{i + 1}", nn.LayerList(blocks))
            setattr(self, f"norm{i + 1}", nn.LayerNorm(embed_dims[i], block_epsilon))
        self.apply(init_weights)
        load_pretrained(self, pretrained)

    def forward(self, x):
        """Encode images.

        Args:
            x: Float tensor ``[N, in_channels, H, W]``, normalized, with H and W at least 32.

        Returns:
            Four float tensors ``[N, C_i, ceil(H / s), ceil(W / s)]`` for s = 4, 8, 16, 32.
        """
        features = []
        for i in range(1, 5):
            x, h, w = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"block{i}"):
                if self.recompute and self.training and not x.stop_gradient:
                    x = recompute_in_backward(block, x, h, w, use_reentrant=False)
                else:
                    x = block(x, h, w)
            x = to_map(getattr(self, f"norm{i}")(x), h, w)
            features.append(x)
        return features


class PatchEmbedding(nn.Layer):
    """Overlapped patch merging: a strided convolution whose patches share their borders."""

    def __init__(self, in_channels, channels, kernel, stride, epsilon):
        super().__init__()
        self.proj = Conv2D(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, epsilon)

    def forward(self, x):
        """``[N, C, H, W]`` to tokens ``[N, h * w, channels]`` and their ``h, w``."""
        x = self.proj(x)
        h, w = x.shape[2:]
        return self.norm(to_tokens(x)), h, w


class Block(nn.Layer):
    """Pre-norm Transformer block: efficient self-attention, then Mix-FFN."""

    def __init__(self, attention, mlp, channels, drop_path_rate, epsilon):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, epsilon)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels, epsilon)
        self.mlp = mlp
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x, h, w):
        x = x + self.drop_path(self.attn(self.norm1(x), h, w))
        return x + self.drop_path(self.mlp(self.norm2(x), h, w))


class EfficientAttention(nn.Layer):
    """Self-attention whose keys and values come from a sequence shortened R^2 times (eq. 1, 2)."""

    def __init__(
        self,
        channels,
        num_heads,
        sr_ratio,
        qkv_bias,
        qk_scale,
        drop_rate,
        attn_drop_rate,
        epsilon,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.scale = qk_scale or (channels // num_heads) ** -0.5
        self.q = Linear(channels, channels, bias_attr=None if qkv_bias else False)
        self.kv = Linear(channels, 2 * channels, bias_attr=None if qkv_bias else False)
        self.attn_drop = nn.Dropout(attn_drop_rate)
        self.proj = Linear(channels, channels)
        self.proj_drop = nn.Dropout(drop_rate)
        self.reduces = sr_ratio > 1
        if self.reduces:
            self.sr = Conv2D(channels, channels, sr_ratio, sr_ratio)
            self.norm = nn.LayerNorm(channels, epsilon)

    def forward(self, x, h, w):
        short = self.norm(to_tokens(self.sr(to_map(x, h, w)))) if self.reduces else x
        q, k, v = (self._heads(t) for t in (self.q(x), *self.kv(short).chunk(2, axis=-1)))
        return self.proj_drop(self.proj(self._attend(q, k, v).flatten(2)))

    def _heads(self, x):
        """``[N, L, C]`` to ``[N, L, heads, C / heads]``."""
        return x.reshape([0, 0, self.num_heads, -1])

    def _attend(self, q, k, v):
        """softmax(scale q k^T) v; all ``[N, L, heads, C / heads]``."""
        if _is_fused(q):  # flash attention, which keeps no scores
            q = q * (self.scale * q.shape[-1] ** 0.5)
            drop = {"dropout_p": self.attn_drop.p, "training": self.training}
            return F.scaled_dot_product_attention(q, k, v, **drop)
        q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q * self.scale, k, v))
        if paddle.in_dynamic_mode() and not paddle.is_grad_enabled() and q.place.is_cpu_place():
            # Nobody will ask for the scores again: no more of them at once than a cache holds.
            rows = max(1, MAX_SCORES // k.shape[2])
            chunks = [q[:, :, i : i + rows] for i in range(0, q.shape[2], rows)]
            x = paddle.concat([self._mix(chunk, k, v) for chunk in chunks], axis=2)
        else:
            x = self._mix(q, k, v)
        return x.transpose([0, 2, 1, 3])

    def _mix(self, q, k, v):
        scores = paddle.matmul(q, k, transpose_y=True)
        return paddle.matmul(self.attn_drop(F.softmax_(scores)), v)


class MixFFN(nn.Layer):
    """Feed-forward network that learns position from a 3x3 depthwise convolution (eq. 3)."""

    def __init__(self, channels, hidden, drop_rate):
        super().__init__()
        self.fc1 = Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = Linear(hidden, channels)
        self.drop = nn.Dropout(drop_rate)

    def forward(self, x, h, w):
        # The hidden features stay a map [N, hidden, h, w], which the products before and after
        # write and read as it is: nothing is transposed.
        x = paddle.matmul(self.fc1.weight, x, transpose_x=True, transpose_y=True)
        x = add_bias(x, self.fc1.bias, axis=1).reshape([0, 0, h, w])
        x = self.dwconv.dwconv(x).flatten(2)
        if self.drop.p == 0:
            return add_bias(gelu_matmul(x, self.fc2.weight), self.fc2.bias)
        x = paddle.matmul(self.drop(F.gelu(x)), self.fc2.weight, transpose_x=True)
        return self.drop(add_bias(x, self.fc2.bias))


class DepthwiseConv(nn.Layer):
    """3x3 depthwise convolution, under the name that checkpoints give it."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv = Conv2D(channels, channels, 3, padding=1, groups=channels)


class Linear(nn.Linear):
    """Linear layer that adds its bias the fast way."""

    def forward(self, x):
        x = paddle.matmul(x, self.weight)
        return x if self.bias is None else add_bias(x, self.bias)


class Conv2D(nn.Conv2D):
    """Convolution that adds its bias the fast way."""

    def forward(self, x):
        x = F.conv2d(x, self.weight, None, self._stride, self._padding, groups=self._groups)
        h, w = x.shape[2:]
        return add_bias(x.flatten(2), self.bias, axis=1).reshape([0, 0, h, w])


class DropPath(nn.Layer):
    """Stochastic depth: drops a sample's residual branch whole, scales the kept ones up."""

    def __init__(self, rate):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = paddle.bernoulli(paddle.full([x.shape[0], 1, 1], keep, x.dtype))
        return scale_samples(x, kept / keep)


def _is_fused(q):
    """Whether Paddle has a fused operator for such queries: of GPUs, Ampere is the first."""
    if q.dtype not in FUSED_TYPES:
        return False
    # Not every Paddle 3 looks at the GPU before it takes the operator, which then fails.
    return not q.place.is_gpu_place() or get_device_capability() >= (8, 0)


def to_tokens(x):
    """Map ``[N, C, H, W]`` to tokens ``[N, H * W, C]``."""
    return x.flatten(2).transpose([0, 2, 1])


def to_map(x, h, w):
    """Tokens ``[N, h * w, C]`` to map ``[N, C, h, w]``."""
    return x.transpose([0, 2, 1]).reshape([0, 0, h, w])


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


def init_weights(layer):
    """Initialize one layer as the paper's models are before any training."""
    if isinstance(layer, nn.Linear):
        nn.initializer.TruncatedNormal(std=0.02)(layer.weight)
    elif isinstance(layer, nn.Conv2D):
        fan_out = np.prod(layer._kernel_size) * layer._out_channels // layer._groups
        nn.initializer.Normal(std=math.sqrt(2 / fan_out))(layer.weight)
    else:
        return
    if layer.bias is not None:
        nn.initializer.Constant(0.0)(layer.bias)


def _variant(size: str) -> Callable[..., MixVisionTransformer]:
    """A constructor of one size of the family, under the name that PaddleSeg gives it."""
    embed_dims, depths = SIZES[size]
    sized = functools.partial(MixVisionTransformer, embed_dims=embed_dims, depths=depths)

    def build(*args, **kwargs):
        return sized(*args, **kwargs)

    build.__name__ = build.__qualname__ = f"MixVisionTransformer_{size}"
    build.__doc__ = f"MiT-{size}: ``MixVisionTransformer`` with this size's channels and depths."
    build.__signature__ = inspect.signature(sized)
    return build


MixVisionTransformer_B0 = _variant("B0")
MixVisionTransformer_B1 = _variant("B1")
MixVisionTransformer_B2 = _variant("B2")
MixVisionTransformer_B3 = _variant("B3")
MixVisionTransformer_B4 = _variant("B4")
MixVisionTransformer_B5 = _variant("B5")
