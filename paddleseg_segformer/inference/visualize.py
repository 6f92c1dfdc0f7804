"""Label maps as pictures."""

from __future__ import annotations

import numpy as np

IGNORED_COLOR = (0, 0, 0)


def color_table(palette):
    """A color for each of a byte's values, black beyond the palette: uint8 array ``[256, 3]``."""
    table = np.tile(np.array(IGNORED_COLOR, dtype="uint8"), [256, 1])
    table[: len(palette)] = palette
    return table


def color_map(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Color a label map.

    Args:
        labels: uint8 array ``[H, W]`` of class indices; an index beyond the palette is black.
        palette: uint8 array ``[classes, 3]`` of RGB colors.

    Returns:
        uint8 array ``[H, W, 3]``, RGB.
    """
    return color_table(palette)[labels]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """Lay a label map over its image.

    Args:
        image: uint8 array ``[H, W, 3]``, RGB.
        labels: uint8 array ``[H, W]`` of class indices.
        palette: uint8 array ``[classes, 3]`` of RGB colors.
        opacity: Of the colors, from 0 to 1.

    Returns:
        uint8 array ``[H, W, 3]``, RGB.
    """
    mixed = (1 - opacity) * image + opacity * color_map(labels, palette)
    return (mixed + 0.5).astype("uint8")
