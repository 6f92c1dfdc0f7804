"""Losses, registered with PaddleSeg under its own names."""

import paddle
import paddle.nn.functional as F
from paddle import nn


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

        Args:
            logit: Float tensor ``[N, C, ...]``, or ``[N, ..., C]`` when the format is NHWC.
            label: Integer tensor ``[N, ...]`` of class indices or ``ignore_index``.
            semantic_weights: Optional float tensor of label's shape, a weight for each pixel.

        Returns:
            Tensor without dimensions, float32 (float64 of float64 logits).

        Raises:
            ValueError: The number of class weights is not the number of classes.
        """
        if self.data_format == "NCHW" and logit.ndim > 2:
            logit = logit.transpose([0, *range(2, logit.ndim), 1])
        if self.weight is not None and len(self.weight) != logit.shape[-1]:
            raise ValueError(
                f"CrossEntropyLoss has {len(self.weight)} class weights "
                f"for {logit.shape[-1]} classes."
            )
        if logit.dtype != paddle.float64:  # in half precision the sum over an image overflows
            logit = logit.astype("float32")
        label = label.astype("int64")
        valid = label != self.ignore_index
        loss = F.cross_entropy(
            logit, label, self.weight, ignore_index=self.ignore_index, reduction="none"
        ).reshape(label.shape)
        divisor = self._divisor(label, valid).astype(loss.dtype)
        if semantic_weights is not None:
            loss = loss * semantic_weights
        if self.top_k_percent_pixels < 1:
            hardest = int(self.top_k_percent_pixels * loss.size)
            loss, indices = paddle.topk(loss.flatten(), hardest)
            divisor = divisor.flatten().gather(indices)
        return loss.sum() / (divisor.sum() + self._EPSILON)

    def _divisor(self, label, valid):
        """Each pixel's share of the number that the summed loss is divided by."""
        if not self.avg_non_ignore:
            return paddle.ones_like(label)
        if self.weight is None:
            return valid
        return self.weight.gather(paddle.where(valid, label, 0).flatten()).reshape(
            label.shape
        ) * valid.astype("float32")
