"""Scaled dot-product attention."""

import math

import paddle
import paddle.nn.functional as F
from paddle.device.cuda import get_device_capability

# Attention scores per sample and head that are computed at once without gradients on a CPU: 4 MB
# in float32, to stay in its cache.
MAX_SCORES = 1 << 20

FUSED_DTYPES = (paddle.float16, paddle.bfloat16)  # which Paddle's fused kernel supports


def scaled_dot_product_attention(q, k, v, scale, dropout_p=0.0, training=True):
    """``softmax(scale * q k^T) v`` for each head (paper, equation 1).

    Args:
        q: Queries, float tensor ``[N, L, heads, C]``.
        k: Keys, float tensor ``[N, S, heads, C]``.
        v: Values, as the keys.
        scale: Factor of the scores, usually ``C ** -0.5``.
        dropout_p: Dropout rate of the attention weights.
        training: Whether to apply dropout.

    Returns:
        Float tensor ``[N, L, heads, C]``.
    """
    if _has_fused_kernel(q):  # FlashAttention, which does not store the scores
        factor = scale * q.shape[-1] ** 0.5  # the kernel itself divides by sqrt(C)
        q = q if math.isclose(factor, 1) else q * factor
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, training=training)
    q, k, v = (x.transpose([0, 2, 1, 3]) for x in (q * scale, k, v))

    def attend(q):
        scores = paddle.matmul(q, k, transpose_y=True)
        # AMP computes softmax in float32, but does not apply to operators in place.
        weights = F.softmax(scores) if scores.dtype in FUSED_DTYPES else F.softmax_(scores)
        return paddle.matmul(F.dropout(weights, dropout_p, training=training), v)

    if paddle.in_dynamic_mode() and not paddle.is_grad_enabled() and q.place.is_cpu_place():
        rows = max(1, MAX_SCORES // k.shape[2])
        chunks = [q[:, :, i : i + rows] for i in range(0, q.shape[2], rows)]
        x = paddle.concat([attend(chunk) for chunk in chunks], axis=2)
    else:
        x = attend(q)
    return x.transpose([0, 2, 1, 3])


def _has_fused_kernel(q):
    """Whether Paddle has a fused kernel for the dtype and GPU (Ampere or newer) of a tensor."""
    if q.dtype not in FUSED_DTYPES:
        return False
    # Some versions of Paddle 3 choose the fused kernel on older GPUs too, where it fails.
    return not q.place.is_gpu_place() or get_device_capability() >= (8, 0)
