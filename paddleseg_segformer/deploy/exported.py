"""Segmenting images with an exported graph."""

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F

from ..errors import InputError
from .protocol import Protocol
from .segmenter import Segmenter


def make_segmenter(graph, product, transforms, protocol):
    """What labels images by a graph: called like ``Segmenter``.

    Args:
        graph: What ``open_runtime`` returned.
        product: ``Product`` of the graph.
        transforms: PaddleSeg's ``Compose`` of its transforms.
        protocol: ``Protocol``.

    Raises:
        InputError: The protocol asks for what label maps and probabilities do not allow.
    """
    size = tuple(product.input_shape[2:])
    size = None if -1 in size else size
    if product.output_op == "none":
        return Segmenter(LogitsOfGraph(graph, size), transforms, protocol)
    if protocol != Protocol():
        raise InputError(
            f"A graph whose output is {product.output_op} sees each image once and whole; export "
            "it with --output_op none for scales, mirrored views and windows."
        )
    return GraphSegmenter(graph, size, transforms)


class LogitsOfGraph:
    """A graph that returns logits, as the model that it was.

    Args:
        graph: What ``open_runtime`` returned.
        size: ``(H, W)`` that images are resized to, or None.
    """

    def __init__(self, graph, size):
        self.graph, self.size = graph, size

    def __call__(self, images):
        if self.size is not None and tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear")
        return [paddle.to_tensor(self.graph(images.numpy()))]


class GraphSegmenter:
    """Labels images by a graph that returns label maps or probabilities.

    Where the transforms or the graph's own size change an image's, probabilities are resized
    bilinearly, and label maps to the nearest pixel.

    Args:
        graph: What ``open_runtime`` returned.
        size: ``(H, W)`` that images are resized to, or None.
        transforms: PaddleSeg's ``Compose``.
    """

    def __init__(self, graph, size, transforms):
        self.graph, self.size, self.transforms = graph, size, transforms

    def views(self, image):
        """The one look at an image, a uint8 array ``[H, W, 3]``, BGR."""
        return [self.transforms({"img": image.astype("float32"), "trans_info": []})]

    def __call__(self, images):
        """Label maps, integer arrays ``[H, W]``, of a list of images' ``views``."""
        return [self._label(sample["img"], sample["trans_info"]) for (sample,) in images]

    def _label(self, image, trans_info):
        if self.size is not None and image.shape[1:] != self.size:
            trans_info = [*trans_info, ("resize", image.shape[1:])]
            image = cv2.resize(image.transpose(1, 2, 0), self.size[::-1]).transpose(2, 0, 1)
        scores = self.graph(np.ascontiguousarray(image[None], dtype="float32"))[0]
        labels = scores.ndim == 2
        scores = scores if labels else np.ascontiguousarray(scores.transpose(1, 2, 0))
        for kind, (height, width) in reversed(trans_info):
            if kind == "resize":
                way = cv2.INTER_NEAREST if labels else cv2.INTER_LINEAR
                scores = cv2.resize(scores, (int(width), int(height)), interpolation=way)
            else:  # padding, at the right and the bottom
                scores = scores[:height, :width]
        return scores if labels else scores.argmax(axis=2)
