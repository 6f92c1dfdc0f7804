"""Test-time augmentation (TTA): an image at several scales and flips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from paddleseg.transforms import Normalize as PaddleSegNormalize

from ..data.transforms import Compose, at_scale
from ..errors import InputError
from .test_config import TestConfig


class AugmentedInput(NamedTuple):
    """An image at one scale and flip of test-time augmentation.

    ``normalize`` is PaddleSeg's or our ``Normalize``, applied to each window when it is cropped, so
    that a large image is never held as floats; or None.
    """

    image: np.ndarray  # uint8 or float32 [C, h, w], RGB, not flipped yet; or a ``Raster``
    flip: Sequence[int]  # axes of [N, C, H, W] along which the model's input is flipped
    trans_info: list  # as from ``Compose``
    normalize: PaddleSegNormalize | None = None


class TestTimeAugmentation:
    """The validation transforms at each scale and flip of a ``TestConfig``."""

    def __init__(
        self,
        transforms: Sequence[Callable[[dict[str, Any]], dict[str, Any]]],
        test_config: TestConfig,
    ) -> None:
        transforms = list(transforms)
        normalizes = bool(transforms) and isinstance(transforms[-1], PaddleSegNormalize)
        self._normalize = transforms.pop() if normalizes else None
        self._transforms = [Compose(at_scale(transforms, scale)) for scale in test_config.scales]
        self._flips = test_config.flips

    def __call__(self, image: np.ndarray) -> list[AugmentedInput]:
        """Transform an image for each scale and flip, each scale from the original image.

        Args:
            image: uint8 or float32 array ``[H, W, N]`` or ``[H, W]``, as of ``read_image``.
        """
        samples = [transforms({"img": image}) for transforms in self._transforms]
        return [
            AugmentedInput(sample["img"], flip, sample["trans_info"], self._normalize)
            for sample in samples
            for flip in self._flips
        ]

    def of_raster(self, raster: Any) -> list[AugmentedInput]:
        """The inputs of an image that is read window by window: one for each flip.

        Args:
            raster: ``Raster``.

        Raises:
            InputError: A transform other than Normalize, or a scale, would change its size.
        """
        others = [type(x).__name__ for compose in self._transforms for x in compose.transforms]
        if others:
            raise InputError(
                f"{raster.path}: a raster of this size is segmented at its own resolution, without "
                f"{others[0]}; leave only Normalize in val_dataset.transforms and scale 1, or cut "
                "it into smaller files."
            )
        return [AugmentedInput(raster, flip, [], self._normalize) for flip in self._flips]
