"""Adding a bias to a layer's output."""

import paddle


def add_bias(x, bias, axis=-1):
    """Add one number a channel; on the CPU to x itself, which a layer's output can bear.

    Paddle's CPU operator takes several times longer to broadcast, and to sum the gradient over
    all but the channels, than a product with a vector of ones does.

    Args:
        x: Float tensor ``[N, ..., C]``, or ``[N, C, L]`` with ``axis=1``.
        bias: Float tensor ``[C]``.
        axis: The channels' axis, -1 or 1.

    Returns:
        Float tensor of x's shape.
    """
    column = axis == 1
    if not paddle.in_dynamic_mode() or not x.place.is_cpu_place():
        # In x's type: under AMP the product is in half precision, and so must the sum be.
        return x + (bias.unsqueeze(1) if column else bias).astype(x.dtype)
    if column:
        ones = paddle.ones([x.shape[0], 1, x.shape[2]], x.dtype)
        return x.add_(paddle.matmul(bias.unsqueeze(1), ones))
    return x.add_(paddle.matmul(paddle.ones([*x.shape[:-1], 1], x.dtype), bias.unsqueeze(0)))
