"""Cross-entropy of upsampled logits, computed tile by tile without storing them at full size."""

from functools import lru_cache

import paddle
from paddle.autograd import PyLayer

from ..device import parallel_map
from .resize import bands, linear_weights, resize_bilinear

# Sums of exponentials below this may have underflowed in float32.
MIN_EXP_SUM = 1e-30

# Elements of a full-size tensor on a GPU, of which a few exist at a time: 640 MiB in float32, for
# four images of 512 x 512 with 150 classes. Smaller ones take more kernel calls.
GROUP_SIZE = 160 << 20


def upsampled_cross_entropy(logits, labels, weights):
    """The weighted sum of the pixels' softmax cross-entropy after a bilinear resize of the logits.

    The resize is to the labels' size, with ``align_corners=False``. The forward pass computes the
    gradient too and stores it at the logits' size, so that full-size logits exist only for a tile
    per thread (on a GPU, for a group of images), whatever the batch size. There is no second
    derivative.

    Args:
        logits: Float tensor ``[N, C, h, w]``.
        labels: int64 tensor ``[N, H, W]`` of classes, 0 to C - 1 even where the weight is 0.
        weights: Float tensor ``[N, H, W]``, the pixels' weights; it gets no gradient.

    Returns:
        Scalar tensor, float64 for float64 logits, else float32.

    Raises:
        ValueError: A label is not a class, or the numbers of label maps and images differ.
    """
    if len(labels) != len(logits):
        raise ValueError(f"{len(labels)} label maps for {len(logits)} images.")
    if logits.place.is_cpu_place():  # on a GPU the operator itself checks, asynchronously
        lowest, highest = int(labels.min()), int(labels.max())
        if not 0 <= lowest <= highest < logits.shape[1]:
            wrong = lowest if lowest < 0 else highest
            raise ValueError(f"label {wrong} is not a class (0 to {logits.shape[1] - 1}).")
    return _UpsampledCrossEntropy.apply(logits, labels, weights)


class _UpsampledCrossEntropy(PyLayer):
    @staticmethod
    def forward(ctx, logits, labels, weights):
        dtype = "float64" if logits.dtype == paddle.float64 else "float32"
        compute = _on_cpu if logits.place.is_cpu_place() else _by_operators
        with paddle.amp.auto_cast(enable=False):
            loss, gradient = compute(logits.astype(dtype), labels, weights.astype(dtype))
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        return loss

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensor()
        return (gradient * upstream).astype(ctx.dtype), None, None


def _by_operators(logits, labels, weights):
    """Loss and gradient with Paddle's operators, by groups of at least one image.

    The operator under ``F.cross_entropy``, which launches kernels for the weights of classes even
    without them.
    """
    n, c = logits.shape[:2]
    labels, weights = labels.unsqueeze(1), weights.unsqueeze(1)
    images = max(1, GROUP_SIZE // (c * labels.shape[2] * labels.shape[3]))
    losses, gradients = [], []
    for start in range(0, n, images):
        group = slice(start, start + images)
        with paddle.enable_grad():
            leaf = logits[group].detach()
            leaf.stop_gradient = False
            full = resize_bilinear(leaf, labels.shape[2:])
            _, loss = paddle._C_ops.cross_entropy_with_softmax(
                full, labels[group], False, True, True, -100, 1
            )
            gradients += paddle.grad(loss, leaf, weights[group])
        losses.append((loss.detach() * weights[group]).sum())
    if len(gradients) == 1:
        return losses[0], gradients[0]
    return paddle.add_n(losses), paddle.concat(gradients)


def _on_cpu(logits, labels, weights):
    """Loss and gradient, by bands of rows in parallel."""
    n, c, h, w = logits.shape
    height, width = labels.shape[1:]
    labels, weights = labels.transpose([0, 2, 1]), weights.transpose([0, 2, 1])
    rows, columns = _cached_bands(h, height, logits.dtype), _cached_bands(w, width, logits.dtype)
    jobs = [
        (
            logits[i, :, row.source],
            labels[i, :, row.target],
            weights[i, :, row.target],
            row,
            columns,
        )
        for i in range(n)
        for row in rows
    ]
    losses, sums = [], paddle.zeros([n, h, w, c], logits.dtype)
    for job, (loss, band_gradient) in enumerate(parallel_map(_band, jobs)):
        losses.append(loss)
        sums[job // len(rows), rows[job % len(rows)].source].add_(band_gradient)
    gradient = paddle.empty_like(logits)
    parallel_map(lambda i: paddle.assign(sums[i].transpose([2, 0, 1]), gradient[i]), range(n))
    return paddle.add_n(losses), gradient


@lru_cache(maxsize=16)
def _cached_bands(source, target, dtype):
    return bands(linear_weights(source, target), dtype)


def _band(job):
    """Loss of one band of rows, and its gradient ``[rows, w, C]`` for its source rows.

    After the matrix products over the rows, the layout is ``[columns, C, rows]``: a tile's columns
    are contiguous in memory.
    """
    logits, labels, weights, row, columns = job
    c, h, w = logits.shape
    ones = paddle.ones([1, c], logits.dtype)
    logits = logits.transpose([1, 2, 0]).contiguous()
    # Softmax is invariant to subtracting a constant from all logits of a pixel. Subtracting the
    # maximum before the resize keeps nearly all exponentials below in range, and is cheaper than
    # after it. A matrix product with ones is faster than broadcasting.
    logits = logits - paddle.matmul(logits.max(axis=-1, keepdim=True), ones)
    logits = logits.reshape([h, w * c])
    strip = paddle.matmul(logits, row.weights, transpose_x=True, transpose_y=True)
    strip = strip.reshape([w, -1])
    losses, gradient = [], paddle.zeros_like(strip)
    for column in columns:
        label = labels[column.target].unsqueeze(1)
        weight = weights[column.target].unsqueeze(1)
        width, _, height = label.shape
        tile = paddle.matmul(column.weights, strip[column.source]).reshape([width, c, height])
        picked = paddle.take_along_axis(tile, label, 1)
        exponentials = paddle.exp(tile)
        total = paddle.matmul(ones, exponentials)
        # Neighboring pixels are confident of different classes.
        if float(total.min()) < MIN_EXP_SUM:
            largest = tile.max(axis=1, keepdim=True)
            picked -= largest
            exponentials = paddle.exp(tile - largest)
            total = paddle.matmul(ones, exponentials)
        losses.append(paddle.dot((paddle.log(total) - picked).flatten(), weight.flatten()))
        # weight * (softmax - one-hot)
        exponentials.multiply_(paddle.matmul(ones, weight / total, transpose_x=True))
        exponentials.put_along_axis_(label, -weight, 1, reduce="add")
        tile = paddle.matmul(column.weights, exponentials.reshape([width, -1]), transpose_x=True)
        gradient[column.source].add_(tile)
    gradient = gradient.reshape([w * c, -1])
    gradient = paddle.matmul(row.weights, gradient, transpose_x=True, transpose_y=True)
    return paddle.add_n(losses), gradient.reshape([h, w, c])
