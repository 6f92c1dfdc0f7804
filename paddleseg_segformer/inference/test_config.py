"""Test-time options: multi-scale + flip augmentation and sliding windows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from paddleseg.cvlibs import Config

from ..errors import InputError

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
FLIPS = ("flip_horizontal", "flip_vertical")
MIN_SCALE, MAX_SCALE = 0.01, 100  # a scale beyond these is a typo that would exhaust the memory


@dataclass(frozen=True)
class TestConfig:
    """Test-time augmentation and sliding-window options, PaddleSeg's ``test_config``.

    Attributes:
        scales: Factors of the input size; each scale is made from the original image.
        flip_horizontal, flip_vertical: Whether to add flipped inputs.
        crop_size: ``(width, height)`` of the sliding windows; None for whole-image inference.
        stride: ``(width, height)`` of the step between windows.

    Raises:
        InputError: A scale or the stride is out of range.
    """

    scales: tuple[float, ...] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self):
        if not self.scales or not all(MIN_SCALE <= s <= MAX_SCALE for s in self.scales):
            limits = f"a number from {MIN_SCALE} to {MAX_SCALE}"
            raise InputError(f"--scales {list(self.scales)}: each scale must be {limits}.")
        if self.crop_size is None:
            return
        if not all(0 < step <= size for size, step in zip(self.crop_size, self.stride)):
            raise InputError(
                f"--stride {list(self.stride)}: must be positive and at most "
                f"--crop_size {list(self.crop_size)}, so that the windows cover the image."
            )

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> TestConfig:
        """Read a configuration's ``test_config``, with keys overridden by ``options``.

        The keys are PaddleSeg's: scales and flips apply only with ``aug_eval``, ``crop_size`` and
        ``stride`` only with ``is_slide``. ``aug_eval`` without scales and flips means multi-scale
        testing with flip: six scales from 0.5 to 1.75 and horizontal flip.
        """
        options = {**config.test_config, **options}
        known = ("aug_eval", "is_slide", *(field.name for field in fields(cls)))
        for key in options:
            if key not in known:
                raise InputError(f"test_config.{key}: unknown key; known are {', '.join(known)}.")
        for key in ("aug_eval", "is_slide", *FLIPS):
            if not isinstance(options.get(key, False), (bool, type(None))):
                raise InputError(f"test_config.{key}: must be true or false, not {options[key]!r}.")
        test_config = {}
        if options.get("aug_eval"):
            keys = [key for key in ("scales", *FLIPS) if options.get(key) is not None]
            given = {key: options[key] for key in keys}
            test_config = given or {"scales": PAPER_SCALES, "flip_horizontal": True}
            test_config["scales"] = _numbers("scales", test_config.get("scales", 1.0))
        if options.get("is_slide"):
            for key in ("crop_size", "stride"):
                if options.get(key) is None:
                    raise InputError(f"--is_slide needs --{key}, too.")
                test_config[key] = _numbers(key, options[key], count=2)
        return cls(**test_config)

    @property
    def flips(self) -> list[list[int]]:
        """The axes of ``[N, C, H, W]`` to flip, for each input of a scale."""
        flips = [[], [3]] if self.flip_horizontal else [[]]
        return flips + [[*flip, 2] for flip in flips] if self.flip_vertical else flips

    def describe(self) -> str:
        """One line for logs and reports, such as "single scale, no flip, whole image"."""
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        if len(self.scales) > 1:
            scales = f"{len(self.scales)} scales ({scales})"
        else:
            scales = "single scale" if scales == "1" else f"scale {scales}"
        flips = [name.partition("_")[2] for name in FLIPS if getattr(self, name)]
        flips = f" + {' and '.join(flips)} flip" if flips else ", no flip"
        views = len(self.scales) * len(self.flips)
        mean = f", mean softmax of {views} views" if views > 1 else ""
        windows = "whole image"
        if self.crop_size is not None:
            windows = "sliding window {}x{}, stride {}x{}".format(*self.crop_size, *self.stride)
        return f"{scales}{flips}{mean}, {windows}"


def _numbers(key, value, count=None):
    """Convert an option, a number or a list of them, to a tuple."""
    try:
        numbers = np.ravel(value).astype(float).tolist()
    except (TypeError, ValueError):
        numbers = []
    is_valid = count is None or (len(numbers) == count and all(x % 1 == 0 for x in numbers))
    if not (numbers and is_valid):
        expected = f"{count} whole numbers" if count else "a number or a list of numbers"
        raise InputError(f"{key}: must be {expected}, not {value!r}.")
    return tuple(int(n) for n in numbers) if count else tuple(numbers)
