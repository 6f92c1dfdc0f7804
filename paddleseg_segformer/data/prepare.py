"""File lists, as PaddleSeg's ``Dataset`` reads them, of a folder of images and one of masks."""

import logging
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from .classes import read_labels

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MASKS = (".png", ".bmp", ".tif", ".tiff")  # JPEG changes values
IMAGES = (*MASKS, ".jpg", ".jpeg", ".webp")


def write_lists(
    root,
    images,
    masks,
    shares=(0.7, 0.3, 0.0),
    postfix=("", ""),
    separator=" ",
    seed=0,
    force=False,
):
    """Write train.txt, val.txt and test.txt, a line for each image that has a mask.

    An image and its mask have the same path in their folders, but for postfix and file type.

    Args:
        root: The data set's folder, which gets the lists.
        images, masks: Folders in it.
        shares: Of each list in the pairs; where it is 0, the list is not written.
        postfix: What image names and mask names end with, before the file type.
        separator: What stands between image and mask.
        seed: Another one chooses others.
        force: Whether to replace lists that are there.

    Returns:
        The number of pairs by list.

    Raises:
        InputError: A folder is missing or no pair is in them, a name is taken twice or has the
            separator in it, a list would be empty, or is there already.
    """
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"--split {_words(shares)}: must be shares of train, val, test; sum 1.")
    root, pairs = Path(root), _pairs(Path(root), images, masks, postfix)
    for path in (path for pair in pairs for path in pair if separator in path):
        raise InputError(
            f"{root / path}: has the separator {separator!r} in its name; give another --separator,"
            " and the same in the config, train_dataset.separator and val_dataset.separator."
        )
    random.Random(seed).shuffle(pairs)
    ends = [round(sum(shares[: i + 1]) * len(pairs)) for i in range(len(SPLITS))]
    lists = {s: pairs[a:b] for s, share, a, b in zip(SPLITS, shares, [0, *ends], ends) if share}
    for split, chosen in lists.items():
        path = root / f"{split}.txt"
        if not chosen:
            raise InputError(f"--split {_words(shares)}: leaves none of {len(pairs)} for {split}.")
        if path.exists() and not force:
            raise InputError(f"{path}: is there already; --force replaces it.")
    for split, chosen in lists.items():
        lines = [separator.join(pair) + "\n" for pair in sorted(chosen)]
        (root / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return {split: len(chosen) for split, chosen in lists.items()}


def _pairs(root, images, masks, postfix):
    """The image and the mask of each pair, paths from the root; what has no partner is told."""
    found = _find(root, images, IMAGES, postfix[0]), _find(root, masks, MASKS, postfix[1])
    pairs = [(found[0][name], found[1][name]) for name in sorted(found[0].keys() & found[1].keys())]
    if not pairs:
        examples = [min(files.values(), default="nothing") for files in found]
        raise InputError(
            f"{root}: no image has a mask of the same name ({examples[0]} and {examples[1]}, for "
            f"example; masks are {', '.join(MASKS)}); does --postfix tell where names differ?"
        )
    for kind, own in zip(("images have no mask", "masks have no image"), found):
        lonely = sorted({*own.values()}.difference(*pairs))
        if lonely:
            logger.warning("%d %s, %s for one: left out", len(lonely), kind, lonely[0])
    return pairs


def _find(root, folder, types, postfix):
    """Files by what an image and its mask have in common, their path in the folder."""
    if not (root / folder).is_dir():
        raise InputError(f"{root / folder}: no such folder; name folders inside {root}.")
    found = {}
    for path in find_files(root / folder, types):
        if not path.stem.endswith(postfix):
            continue
        inside = path.relative_to(root / folder)
        name = inside.with_name(path.stem[: len(path.stem) - len(postfix)] or path.stem).as_posix()
        if name in found:
            raise InputError(
                f"{path}: has the same name as {root / found[name]}; leave one of them in the "
                "folder, or tell them apart with --postfix."
            )
        found[name] = Path(os.path.relpath(path, root)).as_posix()
    return found


def find_files(folder, types):
    """The files of some types in a folder and those below it, sorted; none that is hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in types
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _words(values):
    return " ".join(f"{value:g}" for value in values)


IGNORED = 255
PLACES = np.array([1 << 16, 1 << 8, 1])  # make a color one number


def convert_color_masks(root, colored, target, ignore_others=False, force=False):
    """Write a PNG of class indices for each mask of colors.

    Args:
        root: The data set's folder, whose labels.txt gives every class a color.
        colored: Folder in it of masks: RGB, with a palette, or black and white.
        target: Folder in it for the new ones.
        ignore_others: Whether a color of no class becomes 255, which training ignores.
        force: Whether to replace what is in ``target``.

    Returns:
        The number of masks.

    Raises:
        InputError: A class has no color or another's, there are more than 255, a mask is
            unreadable or has a color of no class, there is none, or ``target`` holds files.
    """
    root = Path(root)
    folder, target = root / colored, root / target
    colors = _colors(root / "labels.txt")
    if target.resolve() == folder.resolve():
        raise InputError(f"{target}: holds the masks of colors; name another folder.")
    masks = [path for path in find_files(folder, MASKS) if target not in path.parents]
    if not masks:
        raise InputError(f"{folder}: holds no mask, a file of type {', '.join(MASKS)}.")
    if target.exists() and any(target.iterdir()) and not force:
        raise InputError(f"{target}: holds files; --force replaces those of the same name.")
    index = np.full(1 << 24, len(colors), dtype="int16")  # of each color there is
    index[colors @ PLACES] = np.arange(len(colors))
    palette = np.zeros([256, 3], dtype="uint8")  # of fewer, Pillow writes fewer bits than 255 needs
    palette[: len(colors)] = colors
    for path in masks:
        labels = index[_read(path) @ PLACES]
        others = labels == len(colors)
        if others.any() and not ignore_others:
            y, x = np.argwhere(others)[0]
            color = " ".join(map(str, _read(path)[y, x]))
            raise InputError(
                f"{path}: has the color {color} at x {x}, y {y}, which is no class in "
                f"{root / 'labels.txt'}; add it, or take such pixels out with --ignore_others."
            )
        labels[others] = IGNORED
        written = target / path.relative_to(folder).with_suffix(".png")
        written.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(labels.astype("uint8"))
        picture.putpalette(palette.tobytes())
        picture.save(written)
    return len(masks)


def _colors(labels):
    """The classes' colors: int array ``[classes, 3]``, RGB."""
    if not labels.is_file():
        raise InputError(f"{labels}: no such file; write a class a line, its name and R G B.")
    names, colors = read_labels(labels)
    lacking = [name for name, color in zip(names, colors) if color is None]
    if lacking or not names:
        first = lacking[0] if lacking else "nothing"
        raise InputError(f"{labels}: {first} has no color; write name R G B.")
    if len({*map(tuple, colors)}) < len(colors):
        raise InputError(f"{labels}: two classes have the same color; give each its own.")
    if len(names) > IGNORED:
        raise InputError(f"{labels}: has {len(names)} classes; a mask of 8 bits holds up to 255.")
    return np.array(colors)


def _read(path):
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB")).astype("int64")
    except Exception as error:  # of damaged files Pillow raises many kinds
        raise InputError(f"{path}: cannot be read as an image ({error}).") from error
