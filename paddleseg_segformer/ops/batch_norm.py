"""BatchNorm, ReLU and a 1x1 convolution by groups of channels, with gradients."""

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.autograd import PyLayer

from ..device import parallel_map
from .parallel_samples import trains_in_threads

# Channels that are processed together: 4 MB of a map of 128 x 128 for two samples in float32.
GROUP_SIZE = 32


def batch_norm_relu_matmul(weight, x, norm):
    """``weight @ relu(norm(x))``; in training on several CPU threads, only x is saved for backward.

    BatchNorm treats channels independently: groups of them are computed in parallel, and again in
    the backward pass, while they are in a core's cache. Left to Paddle's operators are GPUs, one
    thread, where the copies of groups take longer, mixed precision and frozen parameters.

    Args:
        weight: Float tensor ``[N, K, C]``.
        x: Float tensor ``[N, C, h, w]``.
        norm: ``nn.BatchNorm2D`` of C channels, or a layer that replaces it.

    Returns:
        Float tensor ``[N, K, h * w]``.
    """
    inputs = x, weight, norm.weight, norm.bias
    by_groups = trains_in_threads(x) and _is_plain(norm)
    if not by_groups or any(tensor.stop_gradient for tensor in inputs):
        return paddle.matmul(weight, F.relu(norm(x)).flatten(2))
    return _BatchNormReluMatmul.apply(*inputs, norm)


def _is_plain(norm):
    hooks = norm._forward_pre_hooks or norm._forward_post_hooks
    return (
        type(norm) is nn.BatchNorm2D and norm.training and not norm._use_global_stats and not hooks
    )


class _BatchNormReluMatmul(PyLayer):
    @staticmethod
    def forward(ctx, x, weight, scale, shift, norm):
        def run(group):
            statistics = norm._mean[group].clone(), norm._variance[group].clone()
            part = _normalize(_group(x, group), scale[group], shift[group], statistics, norm)
            _set_group(y, group, part)
            return statistics

        y = paddle.empty_like(x)
        results = zip(*parallel_map(run, _groups(x)))
        for tensor, parts in zip((norm._mean, norm._variance), results):
            paddle.assign(paddle.concat(parts), tensor)
        ctx.save_for_backward(x, weight, scale, shift)
        ctx.norm = norm
        return paddle.matmul(weight, y.flatten(2))

    @staticmethod
    def backward(ctx, upstream):
        x, weight, *parameters = ctx.saved_tensor()

        def run(group):
            leaves = [_group(x, group), *(parameter[group].clone() for parameter in parameters)]
            for leaf in leaves:
                leaf.stop_gradient = False
            statistics = ctx.norm._mean[group].clone(), ctx.norm._variance[group].clone()
            with paddle.enable_grad():
                y = _normalize(*leaves, statistics, ctx.norm)
            # Not paddle.grad, which is not thread-safe.
            paddle.autograd.backward(y, _group(gradient, group))
            part, *gradients = (leaf.grad for leaf in leaves)
            _set_group(gradient, group, part)
            return (paddle.matmul(upstream, y.detach().flatten(2), transpose_y=True), *gradients)

        # First that of ReLU's result, then by groups that of x.
        gradient = paddle.matmul(weight, upstream, transpose_x=True).reshape(x.shape)
        weights, *others = zip(*parallel_map(run, _groups(x)))
        return gradient, paddle.concat(weights, axis=2), *map(paddle.concat, others)


def _groups(x):
    return [slice(i, i + GROUP_SIZE) for i in range(0, x.shape[1], GROUP_SIZE)]


def _group(x, group):
    """A copy of some channels. Concatenating samples is much faster than copying a slice of x."""
    return paddle.concat([x[i : i + 1, group] for i in range(len(x))])


def _set_group(x, group, part):
    for i in range(len(x)):
        paddle.assign(part[i], x[i, group])


def _normalize(x, scale, shift, statistics, norm):
    """ReLU of the normalized x; updates the running statistics, mean and variance."""
    options = {"momentum": norm._momentum, "epsilon": norm._epsilon}
    return F.relu_(F.batch_norm(x, *statistics, scale, shift, training=True, **options))
