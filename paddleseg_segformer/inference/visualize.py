"""Label maps in the classes' colors."""

from __future__ import annotations

import numpy as np


def color_table(palette):
    """A color for each uint8 value, black beyond the palette: uint8 array ``[256, 3]``."""
    table = np.zeros([256, 3], dtype="uint8")
    table[: len(palette)] = palette
    return table


def color_map(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Color a label map, uint8 ``[H, W]``, as an RGB image, uint8 ``[H, W, 3]``.

    The palette is uint8 ``[classes, 3]``, RGB; class indices beyond it become black.
    """
    return color_table(palette)[labels]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """Blend an image, uint8 ``[H, W, 3]``, RGB, with the ``color_map`` of its label map.

    The opacity is that of the colors, from 0 to 1.
    """
    blended = (1 - opacity) * image + opacity * color_map(labels, palette)
    return (blended + 0.5).astype("uint8")
