"""Reference implementations for comparison in tests."""

import importlib
import math

import numpy as np
import paddle

# The stages of a backbone that NumPy computes in milliseconds: arguments of MixVisionTransformer.
TINY = {
    "embed_dims": (4, 8, 10, 16),
    "depths": (1, 2, 1, 1),
    "num_heads": (1, 2, 5, 8),
    "sr_ratios": (8, 4, 2, 1),
}


def paddleseg_segformer_model(size, num_classes, embedding_dim):
    """PaddleSeg's own SegFormer, from the installed package."""
    backbones = importlib.import_module("paddleseg.models.backbones.mix_transformer")
    models = importlib.import_module("paddleseg.models.segformer")
    backbone = getattr(backbones, f"MixVisionTransformer_{size}")()
    return models.SegFormer(num_classes, backbone, embedding_dim)


def bilinear(x, size, align_corners=False):
    """Bilinear resizing of ``[N, C, h, w]`` to ``size``, pixel by pixel, in float64."""
    n, c, h, w = x.shape
    out = np.zeros([n, c, *size])
    for i in range(size[0]):
        for j in range(size[1]):
            position = []
            for k, source, target in ((i, h, size[0]), (j, w, size[1])):
                if align_corners:
                    at = k * (source - 1) / (target - 1) if target > 1 else 0.0
                else:
                    at = max((k + 0.5) * source / target - 0.5, 0.0)
                low = min(int(at), source - 1)
                position.append((low, min(low + 1, source - 1), at - low))
            (top, bottom, v), (left, right, u) = position
            upper = (1 - u) * x[:, :, top, left] + u * x[:, :, top, right]
            lower = (1 - u) * x[:, :, bottom, left] + u * x[:, :, bottom, right]
            out[:, :, i, j] = (1 - v) * upper + v * lower
    return out


def upsample(x, size, align_corners=False):
    """``bilinear`` of a tensor, as one matrix product, so that it has a gradient."""
    n, c, h, w = x.shape
    matrix = bilinear(np.eye(h * w).reshape([1, h * w, h, w]), size, align_corners)
    matrix = paddle.to_tensor(matrix.reshape([h * w, -1]), dtype=x.dtype)
    return paddle.matmul(x.flatten(2), matrix).reshape([n, c, *size])


SMALL = 3e-3  # of the inputs of normalization layers, where the epsilons matter


def random_state(projection="linear", classes=5, width=6, seed=0):
    """Random weights of a SegFormer with the stages ``TINY``, in PaddleSeg's names and layout."""
    rng, state = np.random.default_rng(seed), {}

    def layer(name, shape, inputs, outputs, scale=1.0, bias=True):
        state[f"{name}.weight"] = rng.normal(size=shape) * scale / math.sqrt(inputs)
        if bias:
            state[f"{name}.bias"] = rng.normal(size=outputs) * 0.3 * scale

    def linear(name, inputs, outputs, scale=1.0):
        layer(name, [inputs, outputs], inputs, outputs, scale)

    def conv(name, inputs, outputs, kernel, scale=1.0, bias=True):
        shape = [outputs, inputs, kernel, kernel]
        layer(name, shape, inputs * kernel**2, outputs, scale, bias)

    def norm(name, channels, scale=1.0):
        state[f"{name}.weight"] = (1 + 0.3 * rng.normal(size=channels)) * scale
        state[f"{name}.bias"] = 0.3 * rng.normal(size=channels) * scale

    def conv_and_batch_norm(name, inputs):
        conv(f"{name}._conv", inputs, width, 1, SMALL, bias=False)
        norm(f"{name}._batch_norm", width)
        state[f"{name}._batch_norm._mean"] = rng.normal(size=width) * SMALL
        state[f"{name}._batch_norm._variance"] = rng.uniform(0.5, 1.5, width) * SMALL**2

    inputs = 3
    for i, channels in enumerate(TINY["embed_dims"], 1):
        conv(f"backbone.patch_embed{i}.proj", inputs, channels, 7 if i == 1 else 3, SMALL)
        norm(f"backbone.patch_embed{i}.norm", channels, SMALL)
        for j in range(TINY["depths"][i - 1]):
            block, ratio = f"backbone.block{i}.{j}", TINY["sr_ratios"][i - 1]
            norm(f"{block}.norm1", channels)
            linear(f"{block}.attn.q", channels, channels)
            linear(f"{block}.attn.kv", channels, 2 * channels)
            linear(f"{block}.attn.proj", channels, channels, SMALL)
            if ratio > 1:
                conv(f"{block}.attn.sr", channels, channels, ratio, SMALL)
                norm(f"{block}.attn.norm", channels)
            norm(f"{block}.norm2", channels)
            linear(f"{block}.mlp.fc1", channels, 4 * channels)
            conv(f"{block}.mlp.dwconv.dwconv", 1, 4 * channels, 3)
            linear(f"{block}.mlp.fc2", 4 * channels, channels, SMALL)
        norm(f"backbone.norm{i}", channels)
        if projection == "linear":
            linear(f"linear_c{i}.proj", channels, width)
        else:
            conv_and_batch_norm(f"linear_c{i}", channels)
        inputs = channels
    conv_and_batch_norm("linear_fuse", 4 * width)
    conv("linear_pred", width, classes, 1)
    return {name: value.astype("float32") for name, value in state.items()}


def segformer(
    state, images, block_epsilon=1e-6, conv_epsilon=1e-5, factors=None, align_corners=False
):
    """The logits at stride 4 of a SegFormer with the stages ``TINY``: sections 3.1 and 3.2.

    Args:
        state: Arrays in PaddleSeg's names and layout, as of ``random_state``.
        images: Array ``[N, 3, H, W]``.
        block_epsilon: Epsilon of the LayerNorms of blocks and stages.
        conv_epsilon: Epsilon of the LayerNorms of patch embeddings and sequence reductions.
        factors: For training, what multiplies the values that each kind of dropout gets:
            ``attention`` the attention weights, ``linear`` the results of the linear layers of a
            block, ``path`` (a list, by block) its residual branches, ``head`` the decode head's
            channels. None is evaluation.
        align_corners: As of ``bilinear``.

    Returns:
        float64 array ``[N, classes, ceil(H / 4), ceil(W / 4)]``.
    """
    training = factors is not None
    factors = factors or {"attention": 1, "linear": 1, "path": [1] * sum(TINY["depths"]), "head": 1}
    paths = iter(factors["path"])
    state = {name: value.astype("float64") for name, value in state.items()}

    def parameters(name):
        return state[f"{name}.weight"], state.get(f"{name}.bias", np.zeros(1))

    def linear(x, name):
        weight, bias = parameters(name)
        return x @ weight + bias

    def conv(x, name, stride=1, padding=0):
        weight, bias = parameters(name)
        x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], (2, 3))
        windows = windows[:, :, ::stride, ::stride]
        if weight.shape[1] < x.shape[1]:  # depthwise
            x = np.einsum("nchwij,cij->nchw", windows, weight[:, 0])
        else:
            x = np.einsum("nchwij,dcij->ndhw", windows, weight, optimize=True)
        return x + bias[:, None, None]

    def layer_norm(x, name, epsilon):
        weight, bias = parameters(name)
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + epsilon) * weight + bias

    def batch_norm(x, name):
        weight, bias = (p[:, None, None] for p in parameters(name))
        mean, variance = (state[f"{name}.{s}"][:, None, None] for s in ("_mean", "_variance"))
        if training:
            mean, variance = (f(x, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.var))
        return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias

    def attention(x, h, w, name, heads, ratio):
        reduced = x
        if ratio > 1:
            reduced = to_tokens(conv(to_map(x, h, w), f"{name}.sr", ratio))
            reduced = layer_norm(reduced, f"{name}.norm", conv_epsilon)
        query, (key, value) = linear(x, f"{name}.q"), np.split(linear(reduced, f"{name}.kv"), 2, -1)
        results = []
        for q, k, v in zip(*(np.split(t, heads, axis=-1) for t in (query, key, value))):
            weights = softmax(q @ k.swapaxes(1, 2) / math.sqrt(q.shape[-1]), axis=-1)
            results.append(weights * factors["attention"] @ v)
        return linear(np.concatenate(results, axis=-1), f"{name}.proj") * factors["linear"]

    def mix_ffn(x, h, w, name):
        x = conv(to_map(linear(x, f"{name}.fc1"), h, w), f"{name}.dwconv.dwconv", padding=1)
        gelu = x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2
        return linear(to_tokens(gelu) * factors["linear"], f"{name}.fc2") * factors["linear"]

    x, maps = images.astype("float64"), []
    for i, (depth, *sizes) in enumerate(
        zip(*(TINY[s] for s in ("depths", "num_heads", "sr_ratios"))), 1
    ):
        name, (stride, padding) = f"backbone.patch_embed{i}", (4, 3) if i == 1 else (2, 1)
        x = conv(x, f"{name}.proj", stride, padding)
        h, w = x.shape[2:]
        x = layer_norm(to_tokens(x), f"{name}.norm", conv_epsilon)
        for j in range(depth):
            name, path = f"backbone.block{i}.{j}", next(paths)
            y = layer_norm(x, f"{name}.norm1", block_epsilon)
            x = x + path * attention(y, h, w, f"{name}.attn", *sizes)
            y = layer_norm(x, f"{name}.norm2", block_epsilon)
            x = x + path * mix_ffn(y, h, w, f"{name}.mlp")
        x = to_map(layer_norm(x, f"backbone.norm{i}", block_epsilon), h, w)
        maps.append(x)

    is_linear = "linear_c1.proj.weight" in state
    projected = []
    for i, x in enumerate(maps, 1):
        if is_linear:
            x = to_map(linear(to_tokens(x), f"linear_c{i}.proj"), *x.shape[2:])
        else:
            x = conv(x, f"linear_c{i}._conv")
            x = np.maximum(batch_norm(x, f"linear_c{i}._batch_norm"), 0)
        projected.append(bilinear(x, maps[0].shape[2:], align_corners))
    x = np.concatenate(projected[::-1] if is_linear else projected, axis=1)
    x = np.maximum(batch_norm(conv(x, "linear_fuse._conv"), "linear_fuse._batch_norm"), 0)
    return conv(x * factors["head"], "linear_pred")


def to_tokens(x):
    """``[N, C, h, w]`` to ``[N, h * w, C]``."""
    return x.reshape([*x.shape[:2], -1]).swapaxes(1, 2)


def to_map(x, h, w):
    """``[N, h * w, C]`` to ``[N, C, h, w]``."""
    return x.swapaxes(1, 2).reshape([len(x), -1, h, w])


def softmax(x, axis):
    exponentials = np.exp(x - x.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def assert_close(actual, expected, tolerance=1e-4):
    """Compare with a tolerance relative to the largest expected value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())
