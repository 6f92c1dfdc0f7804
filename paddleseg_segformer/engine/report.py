"""The HTML report of an evaluation: scores, classes, confusions, the worst and best images."""

import base64
import io
import os
import re
from bisect import insort
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from .. import device
from ..data.image_io import read_image
from ..fs import as_list, atomic_write, named_write_error
from ..inference import TestConfig
from ..inference.visualize import color_table, to_picture
from . import distributed
from .metrics import Scores, finite_or_none

PAGE = "report.html"
IMAGE_FILE = re.compile(r"(worst|best)_[0-9]+_(photo\.jpg|prediction\.png|truth\.png)")
MAX_WIDTH = 640  # of an image in the report, in pixels
UNLABELED = 255
MAX_CONFUSION_PAIRS = 15
MAX_IMAGES = 8  # worst and best images each
MIN_LEGEND_SHARE = 0.005  # of an image, for a class to be in its legend if it is predicted only
JPEG_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 85)


class EvaluatedImage(NamedTuple):
    """An image with its ground truth, prediction and scores; sorts by ascending mIoU."""

    miou: float  # over the classes in the ground truth
    index: int  # in the data set
    path: str
    name: str  # in the report
    iou: np.ndarray  # float64 [classes]; NaN for classes not in the ground truth
    ground_truth: np.ndarray  # uint8 [h, w], downsized by ``shrink``, as is the prediction
    prediction: np.ndarray
    channels: int = 3  # of the image


def shrink(labels):
    """Downsize a label map to uint8 with a width of at most ``MAX_WIDTH``."""
    height, width = labels.shape
    size = (min(width, MAX_WIDTH), max(1, round(height * min(1, MAX_WIDTH / width))))
    return cv2.resize(labels.astype("uint8"), size, interpolation=cv2.INTER_NEAREST)


def write_report(folder, figures, worst, best, palette, about):
    """Write ``report.html``, a self-contained page, and its images beside it; returns its path.

    Args:
        folder: An existing folder.
        figures: The dictionary that ``tools/val.py --json`` writes.
        worst, best: Lists of ``EvaluatedImage``, in the order of display.
        palette: uint8 array ``[classes, 3]``, RGB.
        about: Texts ``model``, ``data``, ``weights``, ``device`` and ``config``.

    Raises:
        InputError: An image cannot be read.
        RunError: Writing a file fails.
    """
    classes = _classes(figures, palette)
    galleries, contents = {}, {}
    for kind, images in (("worst", worst), ("best", best)):
        galleries[kind] = []
        for number, image in enumerate(images, 1):
            files = _image_files(image, palette)
            galleries[kind].append(_card(image, files, classes))
            contents.update({f"{kind}_{number}_{name}": files[name] for name in files})
    contents[PAGE] = _render(
        figures=figures,
        about=about,
        test_config=TestConfig(**figures["protocol"]).describe(),
        classes=[entry for entry in classes if entry["iou"] is not None],
        confusions=_confusions(figures["confusion"], classes),
        galleries=galleries,
        versions=device.versions(),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    with named_write_error(f"--report {folder}"):
        for old in Path(folder).iterdir():
            # An earlier report may have had more images, and its page must not show the new ones.
            if old.name == PAGE or IMAGE_FILE.fullmatch(old.name):
                old.unlink()
        for name, content in contents.items():
            atomic_write(Path(folder) / name, content)
    return Path(folder) / PAGE


def top_confusions(confusion, max_pairs=MAX_CONFUSION_PAIRS):
    """The most frequent confusions: (true class, predicted class, pixels), most pixels first.

    Args:
        confusion: Pixels, ``[classes, classes]``; rows are true classes.
        max_pairs: Maximum number of confusions.
    """
    errors = np.array(confusion)
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:max_pairs]
    pairs = [divmod(i, len(errors)) for i in order.tolist()]
    return [(true, other, int(errors[true, other])) for true, other in pairs if errors[true, other]]


def _classes(figures, palette):
    """The template's values for each class."""
    pixels = np.sum(figures["confusion"], axis=1)
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in color_table(palette)]
    return [
        {**entry, "index": i, "color": colors[i], "share": pixels[i] / max(pixels.sum(), 1)}
        for i, entry in enumerate(figures["classes"])
    ]


def _confusions(confusion, classes):
    """The template's values for the top confusions."""
    confusion = np.array(confusion)
    pixels, errors = confusion.sum(), confusion.sum() - np.trace(confusion)
    top, pairs = top_confusions(confusion), []
    for true, other, count in top:
        pair = {"true": classes[true], "predicted": classes[other], "pixels": count}
        pairs.append({**pair, "share": count / pixels, "of_class": count / confusion[true].sum()})
    return {"pairs": pairs, "share": sum(count for _, _, count in top) / max(errors, 1)}


def _card(image, files, classes):
    """The template's values for an image."""
    height, width = image.ground_truth.shape
    images = []
    for name, content in files.items():
        kind = "jpeg" if name.endswith(".jpg") else "png"
        images.append(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
    size = {"height": height, "width": width}
    return {**image._asdict(), **size, "images": images, "legend": _legend(image, classes)}


def _legend(image, classes):
    """The classes in the ground truth, the largest first, then other predicted classes."""
    true, predicted = (
        np.bincount(labels.ravel(), minlength=256)[: len(classes)]
        for labels in (image.ground_truth, image.prediction)
    )
    shown = ~np.isnan(image.iou) | (predicted > MIN_LEGEND_SHARE * image.prediction.size)
    order = sorted(np.flatnonzero(shown), key=lambda i: (-true[i], -predicted[i]))
    return [{**classes[i], "iou": finite_or_none(image.iou[i])} for i in order]


def _image_files(image, palette):
    """The bytes of an image's files, by the last part of their names."""
    size = image.ground_truth.shape[::-1]
    picture = to_picture(read_image(image.path, image.channels))
    photo = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    photo = cv2.cvtColor(photo, cv2.COLOR_RGB2BGR)
    return {
        "photo.jpg": cv2.imencode(".jpg", photo, JPEG_QUALITY)[1].tobytes(),
        "prediction.png": _png(image.prediction, palette),
        "truth.png": _png(image.ground_truth, palette),
    }


def _png(labels, palette):
    """A label map in the classes' colors, transparent where unlabeled."""
    image = Image.fromarray(labels)
    image.putpalette(color_table(palette).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=UNLABELED)
    return file.getvalue()


def _render(**values):
    """Render the page, with all text escaped, to bytes."""
    import jinja2  # slow to import, and needed for reports only

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = lambda value: "n/a" if value is None else f"{value:.4f}"
    environment.filters["percent"] = lambda value: f"{value:.2%}"
    return environment.get_template(PAGE).render(**values).encode()


class WorstBestImages:
    """Collects a data set's images with the lowest and highest mIoU; a callback of ``evaluate``."""

    def __init__(self, dataset):
        self._dataset, self._images = dataset, []

    def __call__(self, index, labels, prediction, confusion):
        """Add an image, unless it has no labeled pixels and so no mIoU; see ``evaluate``."""
        scores = Scores(confusion, [])
        if not scores.present.any():
            return
        path = str(self._dataset.file_list[index][0])
        ground_truth = np.where(labels == self._dataset.ignore_index, UNLABELED, labels)
        maps = shrink(ground_truth), shrink(prediction)
        roots = as_list(getattr(self._dataset, "dataset_root", None)) or [os.path.dirname(path)]
        inside = Path(path).is_relative_to(roots[0])
        name = Path(path).relative_to(roots[0]).as_posix() if inside else Path(path).name
        if len(roots) > 1:  # which may have files of the same name
            name = Path(path).as_posix()
        channels = getattr(self._dataset, "img_channels", 3)
        image = EvaluatedImage(scores.miou, index, path, name, scores.iou, *maps, channels)
        insort(self._images, image)
        del self._images[MAX_IMAGES:-MAX_IMAGES]

    def gather(self):
        """The worst and the best images of all processes: two disjoint lists, extremes first."""
        images = sorted(chain(*distributed.all_gather(self._images)))
        del images[MAX_IMAGES:-MAX_IMAGES]
        half = (len(images) + 1) // 2
        return images[:half], images[half:][::-1]
