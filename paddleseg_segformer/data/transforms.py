"""Transforms beside PaddleSeg's own, in its form: a sample dictionary in, the same one out."""

import copy

import cv2

# The attributes in which PaddleSeg's resizing and padding transforms hold a size in pixels.
_SIZES = ("target_size", "long_size", "short_size", "max_size", "max_long", "min_long")


class Rescale:
    """Resize the image by a factor, each side rounded.

    Args:
        factor: Positive number.
    """

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, sample):
        height, width = sample["img"].shape[:2]
        sample["trans_info"].append(("resize", (height, width)))
        size = scaled(width, self.factor), scaled(height, self.factor)
        sample["img"] = cv2.resize(sample["img"], size, interpolation=cv2.INTER_LINEAR)
        return sample


def scaled(side, factor):
    """``side * factor`` in whole pixels, as PaddleSeg and mmsegmentation round it."""
    return int(side * factor + 0.5)


def at_scale(compose, scale):
    """The same transforms for images ``scale`` times as large, made from the original image.

    Every size among them is multiplied; where there is none, the image itself is rescaled first.
    """
    if scale == 1:
        return compose
    compose = copy.deepcopy(compose)
    resizes = False
    for transform in compose.transforms:
        for name in _SIZES:
            size = getattr(transform, name, None)
            if size is None:
                continue
            resizes = True
            sizes = size if isinstance(size, (list, tuple)) else [size]
            sizes = [scaled(side, scale) for side in sizes]
            setattr(transform, name, sizes if isinstance(size, (list, tuple)) else sizes[0])
    if not resizes:
        compose.transforms.insert(0, Rescale(scale))
    return compose
