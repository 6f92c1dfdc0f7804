"""Label maps in the classes' colors."""

from __future__ import annotations

import numpy as np

IGNORED_COLOR = (0, 0, 0)


def color_table(palette):
    """A color for each uint8 value, black beyond the palette: uint8 array ``[256, 3]``."""
    table = np.tile(np.array(IGNORED_COLOR, dtype="uint8"), [256, 1])
    table[: len(palette)] = palette
    return table


def color_map(labels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Color a label map.

    Args:
        labels: uint8 array ``[H, W]`` of class indices; indices beyond the palette become black.
        palette: uint8 array ``[classes, 3]`` of RGB colors.

    Returns:
        uint8 array ``[H, W, 3]``, RGB.
    """
    return color_table(palette)[labels]


def overlay(
    image: np.ndarray, labels: np.ndarray, palette: np.ndarray, opacity: float = 0.5
) -> np.ndarray:
    """Blend a colored label map with its image.

    Args:
        image: uint8 array ``[H, W, 3]``, RGB.
        labels: uint8 array ``[H, W]`` of class indices.
        palette: uint8 array ``[classes, 3]`` of RGB colors.
        opacity: Opacity of the colors, from 0 to 1.

    Returns:
        uint8 array ``[H, W, 3]``, RGB.
    """
    blended = (1 - opacity) * image + opacity * color_map(labels, palette)
    return (blended + 0.5).astype("uint8")
