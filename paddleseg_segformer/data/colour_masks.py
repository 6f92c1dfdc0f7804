"""Masks of class indices from masks of colours, as many tools for annotation write them."""

from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .classes import read_labels
from .lists import MASKS, find_files

IGNORED = 255
PLACES = np.array([1 << 16, 1 << 8, 1])  # make a colour one number


def convert_colour_masks(root, coloured, target, ignore_others=False, force=False):
    """Write a PNG of class indices for each mask of colours.

    Args:
        root: The data set's folder, whose labels.txt gives every class a colour.
        coloured: Folder in it of masks: RGB, with a palette, or black and white.
        target: Folder in it for the new ones.
        ignore_others: Whether a colour of no class becomes 255, which training ignores.
        force: Whether to replace what is in ``target``.

    Returns:
        The number of masks.

    Raises:
        InputError: A class has no colour or another's, there are more than 255, a mask is
            unreadable or has a colour of no class, there is none, or ``target`` holds files.
    """
    root = Path(root)
    folder, target = root / coloured, root / target
    colours = _colours(root / "labels.txt")
    if target.resolve() == folder.resolve():
        raise InputError(f"{target}: holds the masks of colours; name another folder.")
    masks = [path for path in find_files(folder, MASKS) if target not in path.parents]
    if not masks:
        raise InputError(f"{folder}: holds no mask, a file of type {', '.join(MASKS)}.")
    if target.exists() and any(target.iterdir()) and not force:
        raise InputError(f"{target}: holds files; --force replaces those of the same name.")
    index = np.full(1 << 24, len(colours), dtype="int16")  # of each colour there is
    index[colours @ PLACES] = np.arange(len(colours))
    palette = np.zeros([256, 3], dtype="uint8")  # of fewer, Pillow writes fewer bits than 255 needs
    palette[: len(colours)] = colours
    for path in masks:
        labels = index[_read(path) @ PLACES]
        others = labels == len(colours)
        if others.any() and not ignore_others:
            y, x = np.argwhere(others)[0]
            colour = " ".join(map(str, _read(path)[y, x]))
            raise InputError(
                f"{path}: has the colour {colour} at x {x}, y {y}, which is no class in "
                f"{root / 'labels.txt'}; add it, or take such pixels out with --ignore_others."
            )
        labels[others] = IGNORED
        written = target / path.relative_to(folder).with_suffix(".png")
        written.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(labels.astype("uint8"))
        picture.putpalette(palette.tobytes())
        picture.save(written)
    return len(masks)


def _colours(labels):
    """The classes' colours: int array ``[classes, 3]``, RGB."""
    if not labels.is_file():
        raise InputError(f"{labels}: no such file; write a class a line, its name and R G B.")
    names, colours = read_labels(labels)
    lacking = [name for name, colour in zip(names, colours) if colour is None]
    if lacking or not names:
        first = lacking[0] if lacking else "nothing"
        raise InputError(f"{labels}: {first} has no colour; write name R G B.")
    if len({*map(tuple, colours)}) < len(colours):
        raise InputError(f"{labels}: two classes have the same colour; give each its own.")
    if len(names) > IGNORED:
        raise InputError(f"{labels}: has {len(names)} classes; a mask of 8 bits holds up to 255.")
    return np.array(colours)


def _read(path):
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB")).astype("int64")
    except Exception as error:  # of damaged files Pillow raises many kinds
        raise InputError(f"{path}: cannot be read as an image ({error}).") from error
