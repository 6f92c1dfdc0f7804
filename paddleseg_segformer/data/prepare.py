"""Prepare custom data sets: write file lists, and convert color masks to class indices."""

import contextlib
import logging
import os
import random
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import InputError
from ..fs import atomic_path, check_dir_writable, named_write_error, output_dir
from .classes import read_labels
from .dataset import split_line
from .raster_io import open_image

logger = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
MASK_SUFFIXES = (".png", ".bmp", ".tif", ".tiff")  # lossless
IMAGE_SUFFIXES = (*MASK_SUFFIXES, ".jpg", ".jpeg", ".webp", ".npy")
IGNORE_INDEX = 255


def write_lists(
    root,
    images,
    masks,
    fractions=(0.7, 0.3, 0.0),
    postfix=("", ""),
    separator=" ",
    seed=0,
    force=False,
):
    """Write train.txt, val.txt and test.txt for PaddleSeg's ``Dataset``.

    An image and its mask have the same path in their folders, except for postfix and suffix. Images
    without mask and masks without image are left out, with a warning.

    Args:
        root: Folder of the data set, in which the lists are written.
        images, masks: Folders in ``root``.
        fractions: Of the pairs in each list, with sum 1; a list of 0 is not written.
        postfix: End of the image names and of the mask names, before the suffix.
        separator: Between image and mask on a line.
        seed: Random seed of the split.
        force: Whether to replace existing lists.

    Returns:
        The number of pairs by list.

    Raises:
        InputError: A folder is missing or there are no pairs, a name is not unique or cannot be
            read back from a list, or a list would be empty, exists or cannot be written.
        RunError: Writing fails, such as for a full disk; no list is changed.
    """
    split_text = "--split " + " ".join(f"{fraction:g}" for fraction in fractions)
    if not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):  # also of NaN
        raise InputError(f"{split_text}: must be fractions of train, val and test, with sum 1.")
    root = Path(root)
    if not _is_read_back(("a", "b"), separator):
        raise InputError(
            f"--separator {separator!r}: does not separate two names on one line; give a space, a "
            "tab or a character such as '|'."
        )
    pairs = _find_pairs(root, images, masks, postfix)
    for pair in pairs:
        _check_names(root, pair, separator)
    random.Random(seed).shuffle(pairs)
    ends = [round(sum(fractions[:i]) * len(pairs)) for i in range(len(SPLITS) + 1)]
    chosen = (sorted(pairs[start:end]) for start, end in zip(ends, ends[1:]))
    lists = {
        split: subset for split, subset, fraction in zip(SPLITS, chosen, fractions) if fraction
    }
    for split, chosen in lists.items():
        path = root / f"{split}.txt"
        if not chosen:
            raise InputError(f"{split_text}: leaves none of {len(pairs)} for {split}.")
        if os.path.isdir(path):
            raise InputError(f"{path}: is a folder, where the list is to be; rename it.")
        if path.exists() and not force:
            raise InputError(f"{path}: exists; replace it with --force.")
    check_dir_writable(root, "dataset_root")
    with named_write_error(root), contextlib.ExitStack() as stack:  # replaces all lists at the end
        for split, chosen in lists.items():
            text = "".join(separator.join(pair) + "\n" for pair in chosen)
            stack.enter_context(atomic_path(root / f"{split}.txt")).write_bytes(text.encode())
    return {split: len(chosen) for split, chosen in lists.items()}


def _is_read_back(pair, separator):
    """Whether ``read_list`` finds the pair in its line of a list."""
    line = separator.join(pair)
    read = line.encode(errors="ignore").decode("utf-8-sig").splitlines()  # as read_list does
    return bool(separator) and read == [line] and split_line(line, separator) == list(pair)


def _check_names(root, pair, separator):
    """Refuse an image and a mask whose names a list cannot hold."""
    for path in pair:
        if separator in path or (separator == " " and len(path.split()) > 1):
            raise InputError(
                f"{root / path}: has the separator {separator!r} in its name; give another "
                "--separator, and the same in the config, train_dataset.separator and "
                "val_dataset.separator."
            )
        # Such as a line end, a space at its end, or bytes that are not UTF-8.
        if not _is_read_back((path, "b"), separator) or not _is_read_back(("a", path), separator):
            raise InputError(f"{root / path}: has a name that a list cannot hold; rename it.")


def _find_pairs(root, images, masks, postfix):
    """(image, mask) paths relative to the root, sorted."""
    image_files = _files_by_name(root, images, IMAGE_SUFFIXES, postfix[0])
    mask_files = _files_by_name(root, masks, MASK_SUFFIXES, postfix[1])
    names = sorted(image_files.keys() & mask_files.keys())
    pairs = [(image_files[name], mask_files[name]) for name in names]
    if not pairs:
        image, mask = (min(f.values(), default="nothing") for f in (image_files, mask_files))
        if any(postfix):
            end = " and ".join(map(repr, postfix))
            raise InputError(
                f"--postfix: {root} has no image and mask of the same name before {end} ({image} "
                f"and {mask}, for example; masks are {', '.join(MASK_SUFFIXES)})."
            )
        raise InputError(
            f"{root}: no image has a mask of the same name ({image} and {mask}, for example; masks "
            f"are {', '.join(MASK_SUFFIXES)}); if the names end differently, set --postfix."
        )
    for text, files in (("images have no mask", image_files), ("masks have no image", mask_files)):
        unpaired = sorted({*files.values()}.difference(*pairs))
        if unpaired:
            logger.warning("%d %s, such as %s: left out", len(unpaired), text, unpaired[0])
    return pairs


def _files_by_name(root, folder, suffixes, postfix):
    """Paths relative to the root, by path in the folder without postfix and suffix."""
    if not os.path.isdir(root / folder):
        raise InputError(f"{root / folder}: no such folder; name folders inside {root}.")
    files = {}
    for path in _find_files(root / folder, suffixes):
        if not path.stem.endswith(postfix):
            continue
        stem = path.stem.removesuffix(postfix) or path.stem
        name = path.relative_to(root / folder).with_name(stem).as_posix()
        if name in files:
            raise InputError(
                f"{path}: has the same name as {root / files[name]}; leave one of them in the "
                "folder, or separate them by --postfix."
            )
        files[name] = Path(os.path.relpath(path, root)).as_posix()
    return files


def _find_files(folder, suffixes):
    """The files in a folder and its subfolders with one of the suffixes, sorted, except hidden."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def convert_color_masks(root, colored, target, ignore_others=False, force=False):
    """Convert color masks to PNG files of class indices.

    Args:
        root: Folder of the data set, whose labels.txt has a color for each class.
        colored: Folder in ``root`` of color masks: RGB, with a palette, or black and white.
        target: Folder in ``root`` for the converted masks.
        ignore_others: Whether colors of no class become 255, which training ignores.
        force: Whether to replace files in ``target``.

    Returns:
        The number of masks.

    Raises:
        InputError: A class has no color or that of another, there are more than 255 classes, a mask
            is unreadable or has a color of no class, there are no masks or two that would be one
            file, or ``target`` has files or cannot be written to.
        RunError: Writing fails, such as for a full disk.
    """
    root = Path(root)
    folder, target = root / colored, root / target
    colors = _class_colors(root / "labels.txt")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name a folder inside {root}.")
    if os.path.realpath(target) == os.path.realpath(folder):
        raise InputError(f"{target}: is the folder of the color masks; name another folder.")
    masks = [path for path in _find_files(folder, MASK_SUFFIXES) if target not in path.parents]
    if not masks:
        raise InputError(f"{folder}: has no mask, a file of type {', '.join(MASK_SUFFIXES)}.")
    sources = {}  # by the file that each is converted to
    for path in masks:
        output = target / path.relative_to(folder).with_suffix(".png")
        if output in sources:
            raise InputError(
                f"{path}: would be converted to the same {output} as {sources[output]}; rename or "
                "remove one of them."
            )
        sources[output] = path
    if os.path.isdir(target) and os.listdir(target) and not force:
        raise InputError(f"{target}: has files; --force replaces those of the same name.")
    class_by_color = np.full(1 << 24, len(colors), dtype="int16")
    class_by_color[_color_codes(colors)] = np.arange(len(colors))
    palette = np.zeros([256, 3], dtype="uint8")  # all 256, else Pillow writes too few bits for 255
    palette[: len(colors)] = colors
    with output_dir(target, "target"):
        for output, path in sources.items():
            rgb = _read_rgb(path)
            labels = class_by_color[_color_codes(rgb)]
            others = labels == len(colors)
            if others.any() and not ignore_others:
                y, x = np.argwhere(others)[0]
                color = " ".join(map(str, rgb[y, x]))
                raise InputError(
                    f"{path}: has the color {color} at x {x}, y {y}, which is no class in "
                    f"{root / 'labels.txt'}; add it, or ignore such pixels with --ignore_others."
                )
            labels[others] = IGNORE_INDEX
            picture = Image.fromarray(labels.astype("uint8"))
            picture.putpalette(palette.tobytes())
            with named_write_error(output):
                output.parent.mkdir(parents=True, exist_ok=True)
                with atomic_path(output) as partial:
                    picture.save(partial)
    return len(masks)


def _class_colors(path):
    """The classes' RGB colors in a labels.txt, int ``[classes, 3]``."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; write a class a line, its name and R G B.")
    names, colors = read_labels(path)
    if None in colors or not names:
        first = names[colors.index(None)] if names else "nothing"
        raise InputError(f"{path}: {first} has no color; write name R G B.")
    if len({*map(tuple, colors)}) < len(colors):
        raise InputError(f"{path}: two classes have the same color; give each its own.")
    if len(names) > IGNORE_INDEX:
        raise InputError(f"{path}: has {len(names)} classes; an 8-bit mask holds up to 255.")
    return np.array(colors)


def _color_codes(rgb):
    """One number for each color, 24 bits, of integers ``[..., 3]`` of 0 to 255."""
    codes = rgb[..., 0].astype("int64")
    for band in (1, 2):
        codes <<= 8
        codes |= rgb[..., band]
    return codes


def _read_rgb(path):
    try:
        with open_image(path.read_bytes()) as picture:
            return np.asarray(picture.convert("RGB"))
    except Exception as error:  # Pillow raises many types for damaged files
        raise InputError(f"{path}: cannot be read as an image ({error}).") from error
