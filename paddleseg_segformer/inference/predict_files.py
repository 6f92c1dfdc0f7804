"""Image files to files of pictures: what ``tools/predict.py`` does."""

from __future__ import annotations

import contextlib
import glob
import os
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..data.image_io import read_image
from ..device import num_threads
from ..errors import InputError, RunError
from ..fs import StrPath, check_dir_writable, cleanup_on_error
from .predictor import Predictor

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"}
VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}

# PaddleSeg's names for the folders of its two kinds of picture; the others are ours.
OVERLAYS, COLOR_MAPS = "added_prediction", "pseudo_color_prediction"
LABEL_MAPS, PROBABILITIES = "label_map", "probabilities"
KINDS = (OVERLAYS, COLOR_MAPS, LABEL_MAPS, PROBABILITIES)


def find_images(path):
    """The files that ``path`` means.

    Args:
        path: An image or video, a folder searched with its subfolders, a pattern such as
            ``photos/*.jpg``, or a text file that has an image path as each line or its first word,
            relative to the text file.

    Returns:
        The common folder of the files, and their paths relative to it.

    Raises:
        InputError: There is no such path, or no image in it.
    """
    wanted, path = str(path), Path(path)
    endings = IMAGE_ENDINGS | VIDEO_ENDINGS
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
        root, names = path, [file.relative_to(path) for file in files]
    elif path.is_file() and path.suffix.lower() in endings:
        root, names = path.parent, [Path(path.name)]
    elif path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is neither an image nor a text file of paths.") from error
        root, lines = path.parent, [line.strip() for line in lines if line.strip()]
        names = [Path(x if (root / x).is_file() else x.split()[0]) for x in lines]
    elif glob.has_magic(wanted):
        found = [Path(name) for name in sorted(glob.glob(wanted, recursive=True))]
        root = Path(os.path.commonpath([name.parent for name in found])) if found else Path()
        names = [name.relative_to(root) for name in found if name.is_file()]
    else:
        raise InputError(f"{path}: no such image, folder or list of images.")
    if not names:
        raise InputError(f"{path}: holds no image ({', '.join(sorted(endings))}).")
    return root, names


def _targets(names):
    """Where a file's pictures go, without ending, below a folder and never outside it: by name.

    Files that differ in their endings alone keep them.

    Raises:
        InputError: Two files' pictures would have the same names.
    """
    paths = {}
    for name in names:
        paths[name] = Path(*(part for part in name.parts if part not in (name.anchor, "..")))
    short = Counter(path.with_suffix("") for path in paths.values())
    whole = set(paths.values())
    targets, taken = {}, {}
    for name, path in paths.items():
        stem = path.with_suffix("")
        target = stem if short[stem] == 1 and stem not in whole else path
        if target in taken:
            raise InputError(
                f"{name}: its pictures would have the same names as those of {taken[target]}; "
                "segment the two one at a time."
            )
        targets[name], taken[target] = target, name
    return targets


def predict(
    model_path: StrPath,
    image_path: StrPath,
    save_dir: StrPath,
    probabilities: bool = False,
    **options: Any,
) -> tuple[int, list[str]]:
    """Segment image files and write an overlay, a color map and a label map of each.

    Args:
        model_path: As ``source`` of ``Predictor``.
        image_path: As in ``find_images``; what lies in ``save_dir``'s own folders is left out.
        save_dir: Folder for ``added_prediction``, ``pseudo_color_prediction`` and ``label_map``;
            in each, images keep their names and subfolders, as PNG. Of a video, the first two are
            videos, and there is no label map.
        probabilities: Whether to write each class's too, ``probabilities/*.npz``: float16 array
            ``[classes, H, W]``.
        options: Of ``Predictor``.

    Returns:
        The number of images and videos that were segmented, and what was wrong with each other.

    Raises:
        InputError: There is no image, or the model cannot be used, or nothing can be written.
        RunError: A picture or video cannot be written after all.
    """
    root, names = find_images(image_path)
    save_dir = Path(save_dir)
    own = {(save_dir / kind).resolve() for kind in KINDS}  # of an earlier time, and no input
    names = [name for name in names if own.isdisjoint((root / name).resolve().parents)]
    if not names:
        raise InputError(
            f"{image_path}: holds only pictures that predict wrote to --save_dir {save_dir}; name "
            "the images, or another folder."
        )
    check_dir_writable(save_dir)
    targets = list(_targets(names).items())
    predictor, problems = Predictor(model_path, **options), []
    if probabilities:
        predictor.check_probabilities()
    step = 1 if probabilities else num_threads()  # those of several images would fill the memory
    with tqdm(total=len(targets), desc="predict", unit="image", disable=None) as bar:
        for start in range(0, len(targets), step):
            chunk = targets[start : start + step]
            problems += _predict_chunk(predictor, root, dict(chunk), save_dir, probabilities)
            bar.update(len(chunk))
    return len(targets) - len(problems), problems


def _predict_chunk(predictor, root, chunk, save_dir, probabilities):
    """Segment some files at the same time; returns what was wrong with those that could not be."""
    images, problems = {}, []
    for name, target in chunk.items():
        try:
            if name.suffix.lower() in VIDEO_ENDINGS:
                _predict_video(predictor, root / name, target, save_dir)
            else:
                images[name] = read_image(root / name)[:, :, ::-1]
        except InputError as error:
            problems.append(str(error))
    for name, found in zip(images, _segment(predictor, list(images.values()), probabilities)):
        if isinstance(found, InputError):
            problems.append(f"{root / name}: {found}")
            continue
        target = chunk[name].with_name(chunk[name].name + ".png")
        _save(save_dir / OVERLAYS / target, found.overlay())
        _save(save_dir / COLOR_MAPS / target, found.color_map())
        _save(save_dir / LABEL_MAPS / target, found.label_image())
        if probabilities:
            path = save_dir / PROBABILITIES / target.with_suffix(".npz")
            with cleanup_on_error(path):
                np.savez_compressed(path, probabilities=found.probabilities)
    return problems


def _segment(predictor, images, probabilities):
    """The predictions of images, or the error of each that the model does not take."""
    try:
        return predictor.batch(images, probabilities)
    except InputError as error:
        if len(images) == 1:
            return [error]
        return [found for image in images for found in _segment(predictor, [image], probabilities)]


def _predict_video(predictor, path, target, save_dir):
    capture = cv2.VideoCapture(str(path))
    sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    size = tuple(int(capture.get(side)) for side in sides)
    if not capture.isOpened() or 0 in size:
        raise InputError(f"{path}: cannot be read as a video.")
    rate, frames = capture.get(cv2.CAP_PROP_FPS) or 25, capture.get(cv2.CAP_PROP_FRAME_COUNT)
    partials = {}
    for folder in (OVERLAYS, COLOR_MAPS):
        final = save_dir / folder / target.with_name(target.name + ".mp4")
        partials[final.with_name(final.name + ".partial.mp4")] = final
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        writers = []
        for partial, final in partials.items():
            with cleanup_on_error(partial):
                code = cv2.VideoWriter_fourcc(*"mp4v")
                writers.append(cv2.VideoWriter(str(partial), code, rate, size))
            stack.callback(partial.unlink, missing_ok=True)
            stack.callback(writers[-1].release)
            if not writers[-1].isOpened():
                raise InputError(f"--save_dir: {final} cannot be written as a video.")
        bar = tqdm(total=int(frames), desc=path.name, unit="frame", leave=False, disable=None)
        stack.callback(bar.close)
        count = 0
        for _ in iter(capture.grab, False):
            found = predictor(capture.retrieve()[1][:, :, ::-1])
            for writer, picture in zip(writers, (found.overlay(), found.color_map())):
                writer.write(np.asarray(picture)[:, :, ::-1])
            bar.update()
            count += 1
        if count == 0:
            raise InputError(f"{path}: cannot be read as a video.")
        for writer, (partial, final) in zip(writers, partials.items()):
            writer.release()
            if _count_frames(partial) != count:  # OpenCV tells nothing of a full disk
                raise RunError(f"--save_dir: {final} cannot be written, as if the disk were full.")
        for partial, final in partials.items():
            with cleanup_on_error(final):
                partial.replace(final)


def _count_frames(path):
    """A video's frames as its file says; 0 where it cannot be read."""
    capture = cv2.VideoCapture(str(path))
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count


def _save(path, picture):
    with cleanup_on_error(path):
        picture.save(path)
