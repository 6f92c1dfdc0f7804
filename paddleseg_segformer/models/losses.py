"""Losses, registered with PaddleSeg under its own names."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import resize_bilinear, upsampled_cross_entropy


class CrossEntropyLoss(nn.Layer):
    """Softmax cross-entropy over pixels; a drop-in for PaddleSeg's, which crashes on Paddle 3.

    In Paddle 3.3 a second backward pass through the same graph (``retain_graph``) ends the process.

    Args:
        weight: One weight a class, or None.
        ignore_index: Label of the pixels that have no loss.
        top_k_percent_pixels: Share of the pixels, those with the highest loss, that count; 0.1 for
            10%. At least one does.
        avg_non_ignore: What the sum is divided by: the (weighted) number of pixels that are not
            ignored, or, when False, the number of all pixels, as in the paper's training.
        data_format: ``"NCHW"``, as SegFormer's are, or ``"NHWC"``, the logits' layout.

    Raises:
        ValueError: ``data_format`` is neither of the two, or ``top_k_percent_pixels`` not above 0.

    Attributes:
        share: Factor of the loss. Of a part of a batch whose parts' losses are averaged, its
            divisor over the parts' mean divisor makes the average the loss of the whole batch.
    """

    _EPSILON = 1e-8

    def __init__(
        self,
        weight: Sequence[float] | None = None,
        ignore_index: int = 255,
        top_k_percent_pixels: float = 1.0,
        avg_non_ignore: bool = True,
        data_format: str = "NCHW",
    ) -> None:
        super().__init__()
        if data_format not in ("NCHW", "NHWC"):
            raise ValueError(f"data_format is {data_format!r}; it must be NCHW or NHWC.")
        if not top_k_percent_pixels > 0:
            raise ValueError(
                f"top_k_percent_pixels is {top_k_percent_pixels!r}; it must be above 0, and 1 for "
                "all pixels."
            )
        self.weight = None if weight is None else paddle.to_tensor(weight, dtype="float32")
        self.ignore_index = ignore_index
        self.top_k_percent_pixels = top_k_percent_pixels
        self.avg_non_ignore = avg_non_ignore
        self.data_format = data_format
        self.share = 1.0

    def divisor(self, label):
        """What the sum over a label map's pixels is divided by, as a float.

        None where it is known only with the logits: where the hardest pixels alone count.
        """
        if self.top_k_percent_pixels < 1:
            return None
        return float(self._weights(label.astype("int64"))[1].sum())

    def forward(self, logit, label, semantic_weights=None):
        """The mean loss.

        NCHW maps of logits that are not of the label's size are resized to it, a part of an image
        at a time (all at once where only the hardest pixels count), so that a model need not do it.

        Args:
            logit: Float tensor ``[N, C, h, w]``, or ``[N, h, w, C]`` when the format is NHWC; or
                of any other number of dimensions, those after the classes then being label's own.
            label: Integer tensor ``[N, H, W]`` (``[N, ...]``) of class indices or
                ``ignore_index``.
            semantic_weights: Optional float tensor of label's shape, a weight for each pixel.

        Returns:
            Tensor without dimensions, float32 (float64 of float64 logits).

        Raises:
            ValueError: The number of class weights is not the number of classes, or NHWC logits
                are not of the label's size.
            ValueError, IndexError: A label is neither a class nor ``ignore_index``; the latter
                with class weights, or where only the hardest pixels count.
        """
        if self.data_format != "NCHW":
            if logit.shape[1:-1] != label.shape[1:]:
                raise ValueError(
                    f"CrossEntropyLoss takes NHWC logits of the label's size, not {logit.shape} "
                    f"for labels {label.shape}; SegFormer's are NCHW."
                )
            logit = logit.transpose([0, logit.ndim - 1, *range(1, logit.ndim - 1)])
        if self.weight is not None and len(self.weight) != logit.shape[1]:
            raise ValueError(
                f"CrossEntropyLoss has {len(self.weight)} class weights "
                f"for {logit.shape[1]} classes."
            )
        label = label.astype("int64")
        weights, divisors = self._weights(
            label, "float64" if logit.dtype == paddle.float64 else "float32"
        )
        label = paddle.where(label != self.ignore_index, label, 0)
        if semantic_weights is not None:
            weights = weights * semantic_weights
        if logit.ndim == 4 and self.top_k_percent_pixels >= 1:
            total = upsampled_cross_entropy(logit, label, weights)
        else:
            total, divisors = self._of_each_pixel(logit, label, weights, divisors)
        return total * self.share / (divisors.sum() + self._EPSILON)

    def _weights(self, label, dtype="float32"):
        """Each pixel's weight in the sum of losses, and in the sum that divides it."""
        valid = label != self.ignore_index
        weights = valid.astype(dtype)
        if self.weight is not None:
            classes = paddle.where(valid, label, 0).flatten()
            weights *= self.weight.gather(classes).reshape(label.shape)
        return weights, weights if self.avg_non_ignore else paddle.ones_like(weights)

    def _of_each_pixel(self, logit, label, weights, divisors):
        """The sum of the weighted losses that count, and those pixels' divisors."""
        if logit.ndim == 4:
            logit = resize_bilinear(logit, label.shape[1:])
        # Classes last: on a CPU softmax is then several times faster. In half precision the sum
        # over an image would overflow.
        logit = logit.transpose([0, *range(2, logit.ndim), 1]).astype(weights.dtype)
        losses = F.cross_entropy(logit, label, reduction="none").flatten() * weights.flatten()
        if self.top_k_percent_pixels >= 1:
            return losses.sum(), divisors
        count = max(1, int(self.top_k_percent_pixels * losses.size))
        losses, indices = paddle.topk(losses, count)
        return losses.sum(), divisors.flatten().gather(indices)
