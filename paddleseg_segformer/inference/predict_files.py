"""Prediction of image and video files, for ``tools/predict.py``."""

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
from ..device import parallel_imap
from ..errors import InputError, RunError
from ..fs import StrPath, cleanup_on_error, output_dir
from ..log import progress
from .predict_raster import NO_DATA, new_label_map, open_raster, segment_large
from .predictor import Predictor

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".npy"}
VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm"}

# The first two are PaddleSeg's folder names.
OVERLAYS, COLOR_MAPS = "added_prediction", "pseudo_color_prediction"
LABEL_MAPS, PROBABILITIES = "label_map", "probabilities"
LATER = object()  # result of a file that is to be segmented with all threads
OUTPUT_DIRS = (OVERLAYS, COLOR_MAPS, LABEL_MAPS, PROBABILITIES)


def find_images(path):
    """Find image and video files: their common folder, and their paths relative to it.

    Args:
        path: An image or video, a folder that is searched recursively, a glob pattern such as
            ``photos/*.jpg``, or a text file that has an image path as each line or its first word,
            relative to the text file.

    Raises:
        InputError: The path does not exist, or there is no image in it.
    """
    pattern, path = str(path), Path(path)
    endings = IMAGE_ENDINGS | VIDEO_ENDINGS
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in endings and p.is_file())
        root, names = path, [file.relative_to(path) for file in files]
    elif path.is_file() and path.suffix.lower() in endings:
        root, names = path.parent, [Path(path.name)]
    elif path.is_file():
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            if any("\0" in line for line in lines):
                raise ValueError("a null character, which no path has")
        except ValueError as error:  # UnicodeDecodeError, too
            raise InputError(f"{path}: is neither an image nor a text file of paths.") from error
        root, lines = path.parent, [line.strip() for line in lines if line.strip()]
        names = [Path(x if os.path.isfile(root / x) else x.split()[0]) for x in lines]
    elif glob.has_magic(pattern):
        paths = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        root = Path(os.path.commonpath([p.parent for p in paths])) if paths else Path()
        names = [p.relative_to(root) for p in paths if p.is_file()]
    else:
        raise InputError(f"{path}: no such image, folder or list of images.")
    if not names:
        raise InputError(f"{path}: contains no image ({', '.join(sorted(endings))}).")
    return root, names


def _output_names(names):
    """The name of each file, by its output path relative to an output folder.

    The path has no extension, unless files differ only in their extensions.
    """
    # Without "..", which would leave the output folder.
    paths = {x: Path(*(part for part in x.parts if part not in (x.anchor, ".."))) for x in names}
    stems = Counter(path.with_suffix("") for path in paths.values())
    full_names, outputs = set(paths.values()), {}
    for name, path in paths.items():
        stem = path.with_suffix("")
        output = stem if stems[stem] == 1 and stem not in full_names else path
        if output in outputs:
            problem = f"would have the same output files as {outputs[output]}"
            raise InputError(f"{name}: {problem}; segment the two one at a time.")
        outputs[output] = name
    return outputs


def predict(
    model_path: StrPath,
    image_path: StrPath,
    save_dir: StrPath,
    probabilities: bool = False,
    **options: Any,
) -> tuple[int, list[str]]:
    """Segment image files and write an overlay, a color map and a label map of each.

    Args:
        model_path: ``source`` of ``Predictor``.
        image_path: As in ``find_images``; files in ``save_dir``'s output folders are excluded.
        save_dir: Folder for ``added_prediction`` (overlays), ``pseudo_color_prediction`` (color
            maps) and ``label_map``; in each, images keep their names and subfolders, as PNG. Of a
            video, the first two are videos, and there is no label map.
        probabilities: Whether to also write ``probabilities/*.npz``, float16 arrays
            ``[classes, H, W]``.
        options: Arguments of ``Predictor``.

    Returns:
        The number of images and videos that were segmented, and the error of each other one.

    Raises:
        InputError: There is no image, the model cannot be used, or ``save_dir`` is not writable.
        RunError: Writing an output fails.
    """
    root, names = find_images(image_path)
    save_dir = Path(save_dir)
    # Without the outputs of an earlier call. Not Path.resolve, which fails on a loop of links.
    outputs = {Path(os.path.realpath(save_dir / kind)) for kind in OUTPUT_DIRS}
    names = [x for x in names if outputs.isdisjoint(Path(os.path.realpath(root / x)).parents)]
    if not names:
        problem = f"contains only outputs of predict in --save_dir {save_dir}"
        raise InputError(f"{image_path}: {problem}; pass the images, or another --save_dir.")
    files = list(_output_names(names).items())
    with output_dir(save_dir):
        predictor, problems = Predictor(model_path, **options), []
        if probabilities:
            predictor.check_probabilities()
    # Probabilities of several images need much memory.
    limit = 1 if probabilities else predictor.segmenter.max_images

    def run(file):
        return _predict_image(predictor, root, *file, save_dir, probabilities)

    results = parallel_imap(run, files, len(files), limit)
    with contextlib.closing(results):
        pairs = progress(zip(files, results), len(files), "predict", "image")
        for (output, name), problem in pairs:
            if problem is LATER:
                problem = _predict_alone(predictor, root / name, output, save_dir, probabilities)
            problems += [problem] if problem else []
    return len(files) - len(problems), problems


def _predict_image(predictor, root, output, name, save_dir, probabilities):
    """Segment an image file, one of several at a time.

    Returns:
        None, or its error; or ``LATER`` for a video or a large raster.
    """
    path, raster = root / name, None
    try:
        if name.suffix.lower() in VIDEO_ENDINGS:
            return LATER
        if (raster := open_raster(path, predictor.channels)) is None:
            image = read_image(path, predictor.channels, predictor.check_type)
        else:
            with contextlib.closing(raster):
                predictor.check_type(path, raster.dtype)
                if raster.is_large:
                    return LATER
                image, valid = raster.read()
    except InputError as error:
        return str(error)
    try:
        (result,) = predictor.segment_decoded([image], probabilities)
    except InputError as error:
        return f"{path}: {error}"
    if raster is not None:
        result.label_map[~valid] = NO_DATA
        with new_label_map(_path(save_dir, LABEL_MAPS, output, ".tif"), raster, predictor) as write:
            write(result.label_map)
    else:
        _save(_path(save_dir, LABEL_MAPS, output, ".png"), result.label_image())
    _save_pictures(result, output, save_dir)
    if probabilities:
        path = _path(save_dir, PROBABILITIES, output, ".npz")
        with cleanup_on_error(path):
            np.savez_compressed(path, probabilities=result.probabilities)
    return None


def _predict_alone(predictor, path, output, save_dir, probabilities):
    """Segment a video or a large raster with all threads; return its error, or None."""
    try:
        if path.suffix.lower() in VIDEO_ENDINGS:
            _predict_video(predictor, path, output, save_dir)
        else:
            with contextlib.closing(open_raster(path, predictor.channels)) as raster:
                _predict_large(predictor, raster, output, save_dir, probabilities)
    except InputError as error:
        return str(error)
    return None


def _predict_large(predictor, raster, output, save_dir, probabilities):
    if probabilities:
        raise InputError(f"{raster.path}: is too large for --probabilities; cut it into pieces.")
    path = _path(save_dir, LABEL_MAPS, output, ".tif")
    try:
        preview = segment_large(predictor, raster, path)
    except InputError as error:
        named = str(raster.path) in str(error)  # not of a graph, which knows no file
        raise error if named else InputError(f"{raster.path}: {error}") from error
    _save_pictures(preview, output, save_dir)


def _save_pictures(prediction, output, save_dir):
    _save(_path(save_dir, OVERLAYS, output, ".png"), prediction.overlay())
    _save(_path(save_dir, COLOR_MAPS, output, ".png"), prediction.color_map())


def _path(save_dir, kind, output, ending):
    return save_dir / kind / output.with_name(output.name + ending)


def _predict_video(predictor, path, output, save_dir):
    capture = cv2.VideoCapture(str(path))
    sides = (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
    size = tuple(int(capture.get(side)) for side in sides)
    if not capture.isOpened() or 0 in size:
        raise InputError(f"{path}: cannot be read as a video.")
    rate, frames = capture.get(cv2.CAP_PROP_FPS) or 25, capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finals = [_path(save_dir, x, output, ".mp4") for x in (OVERLAYS, COLOR_MAPS)]
    partials, writers = [final.with_suffix(".mp4.partial.mp4") for final in finals], []
    with contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        for partial, final in zip(partials, finals):
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
            prediction = predictor(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
            for writer, frame in zip(writers, (prediction.overlay(), prediction.color_map())):
                writer.write(cv2.cvtColor(np.asarray(frame), cv2.COLOR_RGB2BGR))
            bar.update()
            count += 1
        if count == 0:
            raise InputError(f"{path}: cannot be read as a video.")
        for writer, partial, final in zip(writers, partials, finals):
            writer.release()
            written = cv2.VideoCapture(str(partial))
            frames = written.get(cv2.CAP_PROP_FRAME_COUNT)
            written.release()
            if frames != count:  # OpenCV ignores write errors
                raise RunError(f"--save_dir: {final} cannot be written; is the disk full?")
        for partial, final in zip(partials, finals):
            with cleanup_on_error(final):
                partial.replace(final)


def _save(path, image):
    with cleanup_on_error(path):
        image.save(path)
