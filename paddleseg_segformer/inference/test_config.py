"""How an image is looked at: at one scale or several, mirrored, whole or in windows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from paddleseg.cvlibs import Config

from ..errors import InputError

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
FLIPS = ("flip_horizontal", "flip_vertical")
MIN_SCALE, MAX_SCALE = 0.01, 100  # beyond is a slip, and the last thing that a machine does


@dataclass(frozen=True)
class TestConfig:
    """How an image is looked at.

    Attributes:
        scales: Factors; at each the image is made anew from the original.
        flip_horizontal: Whether views mirrored from left to right are added.
        flip_vertical: Whether views mirrored from top to bottom are added.
        crop_size: ``(width, height)`` of sliding windows; None sees the image whole.
        stride: ``(width, height)`` of the step from window to window.

    Raises:
        InputError: A scale is out of bounds, a step not positive, or a stride leaves gaps between
            windows.
    """

    scales: tuple[float, ...] = (1.0,)
    flip_horizontal: bool = False
    flip_vertical: bool = False
    crop_size: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None

    def __post_init__(self):
        if not self.scales or not all(MIN_SCALE <= s <= MAX_SCALE for s in self.scales):
            raise InputError(
                f"--scales {list(self.scales)}: each scale must be positive, from {MIN_SCALE} to "
                f"{MAX_SCALE}."
            )
        if self.crop_size is None:
            return
        for size, step in zip(self.crop_size, self.stride):
            if not 0 < step <= size:
                raise InputError(
                    f"--stride {list(self.stride)}: must be positive and at most "
                    f"--crop_size {list(self.crop_size)}, or pixels between windows are lost."
                )

    @classmethod
    def from_config(cls, config: Config, **options: Any) -> TestConfig:
        """What a configuration's ``test_config`` describes, its keys overridden by ``options``.

        The keys are PaddleSeg's: scales and flips count only with ``aug_eval``, ``crop_size`` and
        ``stride`` only with ``is_slide``. ``aug_eval`` without scales and flips means the paper's
        multi-scale test: six scales, each also mirrored.
        """
        options = {**config.test_config, **options}
        known = ("aug_eval", "is_slide", *(field.name for field in fields(cls)))
        for key in options:
            if key not in known:
                raise InputError(f"test_config.{key}: unknown key; known are {', '.join(known)}.")
        test_config = {}
        if options.get("aug_eval"):
            given = {key: options.get(key) for key in ("scales", *FLIPS)}
            given = {key: value for key, value in given.items() if value is not None}
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
        """The axes of ``[N, C, H, W]`` that each view of a scale is mirrored along."""
        flips = [[]]
        if self.flip_horizontal:
            flips += [[3]]
        if self.flip_vertical:
            flips += [flip + [2] for flip in flips]
        return flips


def _numbers(key, value, count=None):
    """A tuple of the numbers that an option gives, alone or in a list."""
    try:
        numbers = np.ravel(value).astype(float).tolist()
    except (TypeError, ValueError):
        numbers = []
    if not numbers or (count is not None and len(numbers) != count):
        wanted = f"{count} numbers" if count else "a number or a list of numbers"
        raise InputError(f"{key}: must be {wanted}, not {value!r}.")
    return tuple(int(n) for n in numbers) if count else tuple(numbers)
