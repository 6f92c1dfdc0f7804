"""Losses, registered with PaddleSeg under its own names."""

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import resize_bilinear, upsampled_cross_entropy


class CrossEntropyLoss(nn.Layer):
    """Softmax cross-entropy over pixels; a drop-in for PaddleSeg's, which crashes on Paddle 3.

    Args:
        weight: One weight a class, or None.
        ignore_index: Label of the pixels that have no loss.
        top_k_percent_pixels: Share of the pixels, those with the highest loss, that count.
        avg_non_ignore: What the sum is divided by: the (weighted) number of pixels that are not
            ignored, or, when False, the number of all pixels, as in the paper's training.
        data_format: ``"NCHW"`` or ``"NHWC"``, the logits' layout.
    """

    _EPSILON = 1e-8

    def __init__(
        self,
        weight=None,
        ignore_index=255,
        top_k_percent_pixels=1.0,
        avg_non_ignore=True,
        data_format="NCHW",
    ):
        super().__init__()
        self.weight = None if weight is None else paddle.to_tensor(weight, dtype="float32")
        self.ignore_index = ignore_index
        self.top_k_percent_pixels = top_k_percent_pixels
        self.avg_non_ignore = avg_non_ignore
        self.data_format = data_format

    def forward(self, logit, label, semantic_weights=None):
        """The mean loss.

        Maps of logits that are not of the label's size are resized to it, a part of an image at a
        time (all at once where only the hardest pixels count), so that a model need not do it.

        Args:
            logit: Float tensor ``[N, C, h, w]``, or ``[N, h, w, C]`` when the format is NHWC; or
                of any other number of dimensions, those after the classes then being label's own.
            label: Integer tensor ``[N, H, W]`` (``[N, ...]``) of class indices or
                ``ignore_index``.
            semantic_weights: Optional float tensor of label's shape, a weight for each pixel.

        Returns:
            Tensor without dimensions, float32 (float64 of float64 logits).

        Raises:
            ValueError: The number of class weights is not the number of classes, or a label is
                neither a class nor ``ignore_index``.
        """
        if self.data_format != "NCHW":
            logit = logit.transpose([0, logit.ndim - 1, *range(1, logit.ndim - 1)])
        if self.weight is not None and len(self.weight) != logit.shape[1]:
            raise ValueError(
                f"CrossEntropyLoss has {len(self.weight)} class weights "
                f"for {logit.shape[1]} classes."
            )
        label = label.astype("int64")
        valid = label != self.ignore_index
        label = paddle.where(valid, label, 0)
        weights = valid.astype("float64" if logit.dtype == paddle.float64 else "float32")
        if self.weight is not None:
            weights *= self.weight.gather(label.flatten()).reshape(label.shape)
        divisors = weights if self.avg_non_ignore else paddle.ones_like(weights)
        if semantic_weights is not None:
            weights = weights * semantic_weights
        if logit.ndim == 4 and self.top_k_percent_pixels >= 1:
            total = upsampled_cross_entropy(logit, label, weights)
        else:
            total, divisors = self._of_each_pixel(logit, label, weights, divisors)
        return total / (divisors.sum() + self._EPSILON)

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
        losses, indices = paddle.topk(losses, int(self.top_k_percent_pixels * losses.size))
        return losses.sum(), divisors.flatten().gather(indices)
