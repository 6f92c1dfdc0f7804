"""Reference implementations for comparison in tests."""

import importlib

import numpy as np


def paddleseg_segformer_model(size, num_classes, embedding_dim):
    """PaddleSeg's own SegFormer, from the installed package."""
    backbones = importlib.import_module("paddleseg.models.backbones.mix_transformer")
    models = importlib.import_module("paddleseg.models.segformer")
    backbone = getattr(backbones, f"MixVisionTransformer_{size}")()
    return models.SegFormer(num_classes, backbone, embedding_dim)


def bilinear(x, size, align_corners=False):
    """Bilinear resizing of ``[N, C, h, w]`` to ``size``, pixel by pixel, in float64."""
    n, c, h, w = x.shape
    out = np.zeros([n, c, *size])
    for i in range(size[0]):
        for j in range(size[1]):
            position = []
            for k, source, target in ((i, h, size[0]), (j, w, size[1])):
                if align_corners:
                    at = k * (source - 1) / (target - 1) if target > 1 else 0.0
                else:
                    at = max((k + 0.5) * source / target - 0.5, 0.0)
                low = min(int(at), source - 1)
                position.append((low, min(low + 1, source - 1), at - low))
            (top, bottom, v), (left, right, u) = position
            upper = (1 - u) * x[:, :, top, left] + u * x[:, :, top, right]
            lower = (1 - u) * x[:, :, bottom, left] + u * x[:, :, bottom, right]
            out[:, :, i, j] = (1 - v) * upper + v * lower
    return out
