"""Losses, registered with PaddleSeg under the same names as its own."""

from __future__ import annotations

from collections.abc import Sequence

import paddle
import paddle.nn.functional as F
from paddle import nn

from ..ops import resize_bilinear, upsampled_cross_entropy


class CrossEntropyLoss(nn.Layer):
    """Pixel-wise softmax cross-entropy; replaces PaddleSeg's, which crashes on Paddle 3.

    Args:
        weight: Class weights, or None.
        ignore_index: Label of the pixels to ignore.
        top_k_percent_pixels: Online hard example mining (OHEM): the fraction of the pixels,
            those with the highest losses, to average over, 0.1 for 10%; at least one pixel.
        avg_non_ignore: Whether to divide by the number, or sum of class weights, of the pixels
            that are not ignored; if False, by the number of all pixels, as the paper's training.
        data_format: Layout of the logits, ``"NCHW"`` as SegFormer's, or ``"NHWC"``.

    Raises:
        ValueError: ``data_format`` is unknown, or ``top_k_percent_pixels`` is not above 0.

    Limitation: call ``backward()`` once per graph; with ``retain_graph``, Paddle 3.3 crashes.
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

    def normalizer(self, label):
        """The number (or sum of class weights) by which the summed loss is divided.

        A scalar tensor; None with ``top_k_percent_pixels``, where it depends on the logits.
        """
        if self.top_k_percent_pixels < 1:
            return None
        label = label.astype("int64")
        return self._pixel_weights(*self._valid_labels(label))[1].sum()

    def forward(self, logit, label, semantic_weights=None, scale=1.0):
        """The mean loss of a batch.

        NCHW maps of logits are resized to the label's size if they differ from it: tile by tile,
        or all at once with ``top_k_percent_pixels``.

        Args:
            logit: Float tensor ``[N, C, h, w]``, or ``[N, h, w, C]`` for NHWC; or of any other
                number of dimensions, with the label's size.
            label: Integer tensor ``[N, H, W]`` (``[N, ...]``) of class indices or
                ``ignore_index``.
            semantic_weights: Optional float tensor of the label's shape, weights of the pixels.
            scale: Factor of the loss.

        Returns:
            Scalar tensor, float64 for float64 logits, else float32.

        Raises:
            ValueError: The numbers of class weights and classes differ, or NHWC logits do not have
                the label's size.
            ValueError, IndexError: A label is neither a class nor ``ignore_index``; IndexError
                with class weights or ``top_k_percent_pixels``.
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
        label, valid = self._valid_labels(label.astype("int64"))
        weights, norm_weights = self._pixel_weights(
            label, valid, "float64" if logit.dtype == paddle.float64 else "float32"
        )
        if semantic_weights is not None:
            weights = weights * semantic_weights
        if logit.ndim == 4 and self.top_k_percent_pixels >= 1:
            total = upsampled_cross_entropy(logit, label, weights)
        else:
            total, norm_weights = self._full_size_loss(logit, label, weights, norm_weights)
        total = total if scale == 1 else total * scale
        return total / (norm_weights.sum() + self._EPSILON)

    def _valid_labels(self, label):
        """The label with class 0 in place of ``ignore_index``, and where it was another."""
        valid = label != self.ignore_index
        return paddle.where(valid, label, 0), valid

    def _pixel_weights(self, label, valid, dtype="float32"):
        """Weights of the pixels in the summed loss, and in its normalizer."""
        weights = valid.astype(dtype)
        if self.weight is not None:
            weights *= self.weight.gather(label.flatten()).reshape(label.shape)
        return weights, weights if self.avg_non_ignore else paddle.ones_like(weights)

    def _full_size_loss(self, logit, label, weights, norm_weights):
        """The summed loss at full size, with OHEM if set, and the pixels' normalizer weights."""
        if logit.ndim == 4:
            logit = resize_bilinear(logit, label.shape[1:])
        # Softmax on a CPU is several times faster channels last. In half precision the sum over
        # an image would overflow.
        logit = logit.transpose([0, *range(2, logit.ndim), 1]).astype(weights.dtype)
        losses = F.cross_entropy(logit, label, reduction="none").flatten() * weights.flatten()
        if self.top_k_percent_pixels >= 1:
            return losses.sum(), norm_weights
        count = max(1, int(self.top_k_percent_pixels * losses.size))
        losses, indices = paddle.topk(losses, count)
        return losses.sum(), norm_weights.flatten().gather(indices)
