"""Label maps in the classes' colors."""

from __future__ import annotations

import numpy as np

# Percentiles of each band that become black and white in a picture.
STRETCH = (2, 98)


def to_picture(image: np.ndarray) -> np.ndarray:
    """An RGB picture, uint8 ``[H, W, 3]``, of an image of any number of bands.

    The first three bands are red, green and blue; of less than three, the first is shown in gray.
    8-bit values are shown as they are. Others are stretched: in each band, the 2nd percentile
    becomes 0, the 98th 255.

    Args:
        image: uint8 or float32 array ``[H, W]`` or ``[H, W, N]``.
    """
    bands = image if image.ndim == 3 else image[:, :, np.newaxis]
    bands = bands[:, :, : 3 if bands.shape[2] >= 3 else 1]
    if bands.dtype != np.uint8:
        low, high = np.percentile(bands, STRETCH, axis=(0, 1))
        scale = 255 / np.maximum(high - low, np.finfo("float32").tiny)
        bands = (np.clip((bands - low) * scale, 0, 255) + 0.5).astype("uint8")
    return np.ascontiguousarray(np.broadcast_to(bands, (*bands.shape[:2], 3)))


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
