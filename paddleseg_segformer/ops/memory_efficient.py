"""Operators that save less for the backward pass than Paddle's."""

import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer


def add_scaled(x, branch, factors):
    """``x + branch * factors`` for constant factors, without saving branch for the backward pass.

    The gradient with respect to x is the upstream gradient itself and no copy, to which the other
    gradients of x are added in place.

    Args:
        x: Float tensor ``[N, ...]``.
        branch: Float tensor of x's shape.
        factors: Tensor that broadcasts to x, of its dtype; in mixed precision, float32. It gets no
            gradient.

    Returns:
        Float tensor of x's shape and the dtype of factors.
    """
    if not paddle.in_dynamic_mode():
        return x + branch * factors
    return _AddScaled.apply(x, branch, factors)


class _AddScaled(PyLayer):
    @staticmethod
    def forward(ctx, x, branch, factors):
        ctx.save_for_backward(factors)
        ctx.dtypes = x.dtype, branch.dtype
        ctx.frozen = x.stop_gradient, branch.stop_gradient
        return x + branch * factors

    @staticmethod
    def backward(ctx, upstream):
        (factors,) = ctx.saved_tensor()
        gradients = [upstream, None if ctx.frozen[1] else upstream * factors]
        # Paddle 2.6 does not itself cast them to their inputs' dtypes.
        for i, (gradient, dtype, frozen) in enumerate(zip(gradients, ctx.dtypes, ctx.frozen)):
            gradients[i] = None if frozen else _cast(gradient, dtype)
        return (*gradients, None)


def _cast(tensor, dtype):
    return tensor if tensor.dtype == dtype else tensor.astype(dtype)


def gelu_matmul(x, weight):
    """``gelu(x)^T weight``, with the exact (erf) GELU; on a CPU, gelu(x) is not saved.

    The backward pass computes it again, in a fraction of the time of the matrix product.

    Args:
        x: Float tensor ``[N, C, L]``.
        weight: Float tensor ``[C, D]``.

    Returns:
        Float tensor ``[N, L, D]``.
    """
    if not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        return paddle.matmul(F.gelu(x), weight, transpose_x=True)
    return _GeluMatmul.apply(x, weight)


class _GeluMatmul(PyLayer):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        ctx.frozen = x.stop_gradient, weight.stop_gradient
        return paddle.matmul(F.gelu(x), weight, transpose_x=True)

    @staticmethod
    def backward(ctx, upstream):
        x, weight = ctx.saved_tensor()
        with paddle.enable_grad():
            leaf = x.detach()
            leaf.stop_gradient = False
            hidden = F.gelu(leaf)
        x_gradient = weight_gradient = None  # PyLayer requires None for inputs without gradient
        if not ctx.frozen[1]:
            weight_gradient = paddle.matmul(hidden.detach(), upstream).sum(axis=0)
        if not ctx.frozen[0]:
            hidden_gradient = paddle.matmul(weight, upstream, transpose_y=True)
            # Not paddle.grad, which is not thread-safe.
            paddle.autograd.backward(hidden, hidden_gradient)
            x_gradient = leaf.grad
        return x_gradient, weight_gradient
