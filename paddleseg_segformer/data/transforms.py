"""Transforms beside PaddleSeg's own, in its form: a sample dictionary in, the same one out."""

import copy

import cv2

# PaddleSeg's transforms that alone determine the image's size, and the attributes in which these
# and others, which limit or pad, hold sizes in pixels.
_RESIZES = ("Resize", "ResizeByLong", "ResizeByShort")
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

    Every size among them is multiplied; where none resizes, the image itself is rescaled first.
    """
    if scale == 1:
        return compose
    compose = copy.deepcopy(compose)
    for transform in compose.transforms:
        for name in _SIZES:
            size = getattr(transform, name, None)
            if isinstance(size, (list, tuple)):
                setattr(transform, name, [scaled(side, scale) for side in size])
            elif size is not None:
                setattr(transform, name, scaled(size, scale))
    if not any(type(transform).__name__ in _RESIZES for transform in compose.transforms):
        compose.transforms.insert(0, Rescale(scale))
    return compose
