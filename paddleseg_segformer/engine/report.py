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
from ..errors import RunError
from ..fs import atomic_write
from ..inference import TestConfig
from ..inference.visualize import color_table
from . import distributed
from .metrics import Scores

PAGE = "report.html"
IMAGE_FILE = re.compile(r"(worst|best)_[0-9]+_(photo\.jpg|prediction\.png|truth\.png)")
MAX_WIDTH = 640  # of an image in the report, in pixels
UNLABELED = 255
MAX_CONFUSION_PAIRS = 15
# Minimum share of an image for a class to be in its legend if it is predicted only.
MIN_LEGEND_SHARE = 0.005
JPEG_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 85)


class EvaluatedImage(NamedTuple):
    """An image with its ground truth, prediction and scores; sorts by ascending mIoU.

    Attributes:
        miou: Mean IoU over the classes in its ground truth.
        index: Its index in the data set.
        path: The image file.
        name: Its name in the report.
        iou: float64 array ``[classes]``; NaN for classes not in the ground truth.
        ground_truth, prediction: uint8 label maps ``[h, w]``, downsized by ``shrink``.
    """

    miou: float
    index: int
    path: str
    name: str
    iou: np.ndarray
    ground_truth: np.ndarray
    prediction: np.ndarray


def shrink(labels):
    """Downsize a label map to uint8 with a width of at most ``MAX_WIDTH``."""
    height, width = labels.shape
    size = (min(width, MAX_WIDTH), max(1, round(height * min(1, MAX_WIDTH / width))))
    return cv2.resize(labels.astype("uint8"), size, interpolation=cv2.INTER_NEAREST)


def write_report(folder, figures, worst, best, palette, about):
    """Write ``report.html``, a self-contained page, and its images as files beside it.

    Args:
        folder: An existing folder.
        figures: The dictionary that ``tools/val.py --json`` writes.
        worst, best: Lists of ``EvaluatedImage``, in the order of display.
        palette: uint8 array ``[classes, 3]``, RGB.
        about: Texts ``model``, ``data``, ``weights``, ``device`` and ``config``.

    Returns:
        Path of the page.

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
    try:
        for old in Path(folder).iterdir():
            if IMAGE_FILE.fullmatch(old.name):  # an earlier report may have had more images
                old.unlink()
        for name, content in contents.items():
            atomic_write(Path(folder) / name, content)
    except OSError as error:
        raise RunError(f"--report {folder}: cannot be written ({error.strerror}).") from error
    return Path(folder) / PAGE


def top_confusions(confusion, max_pairs=MAX_CONFUSION_PAIRS):
    """The pairs of a true class and another predicted class with the most pixels.

    Args:
        confusion: Pixels, ``[classes, classes]``; rows are true classes.
        max_pairs: Maximum number of pairs.

    Returns:
        A list of (true class, predicted class, pixels), in descending order of pixels.
    """
    errors = np.array(confusion)
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:max_pairs]
    pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, errors.shape)))
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
    pairs = [
        {
            "true": classes[true],
            "predicted": classes[other],
            "pixels": count,
            "share": count / pixels,
            "of_class": count / confusion[true].sum(),
        }
        for true, other, count in top_confusions(confusion)
    ]
    return {"pairs": pairs, "share": sum(pair["pixels"] for pair in pairs) / max(errors, 1)}


def _card(image, files, classes):
    """The template's values for an image."""
    height, width = image.ground_truth.shape
    return {
        "name": image.name,
        "path": image.path,
        "miou": image.miou,
        "height": height,
        "width": width,
        "images": [_data_uri(name, content) for name, content in files.items()],
        "legend": _legend(image, classes),
    }


def _legend(image, classes):
    """The classes in the ground truth, the largest first, then other predicted classes."""
    true, predicted = (
        np.bincount(labels.ravel(), minlength=256)[: len(classes)]
        for labels in (image.ground_truth, image.prediction)
    )
    shown = ~np.isnan(image.iou) | (predicted > MIN_LEGEND_SHARE * image.prediction.size)
    order = sorted(np.flatnonzero(shown), key=lambda i: (-true[i], -predicted[i]))
    scores = [None if np.isnan(iou) else float(iou) for iou in image.iou]
    return [{**classes[i], "iou": scores[i]} for i in order]


def _image_files(image, palette):
    """The bytes of an image's files, by the last part of their names."""
    size = image.ground_truth.shape[::-1]
    photo = cv2.resize(read_image(image.path), size, interpolation=cv2.INTER_AREA)
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


def _data_uri(name, content):
    kind = "jpeg" if name.endswith(".jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


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
    # The log's formats.
    environment.filters["score"] = lambda value: "n/a" if value is None else f"{value:.4f}"
    environment.filters["percent"] = lambda value: f"{value:.2%}"
    return environment.get_template(PAGE).render(**values).encode()


MAX_IMAGES = 8  # worst and best images each


class WorstBestImages:
    """Collects the images with the lowest and the highest mIoU; a callback of ``evaluate``.

    Args:
        dataset: The PaddleSeg data set that is evaluated.
    """

    def __init__(self, dataset):
        self._dataset, self._images = dataset, []

    def __call__(self, index, labels, prediction, confusion):
        """Add an image; see ``evaluate``. Images without labeled pixels have no mIoU: skipped."""
        scores = Scores(confusion, [])
        if not scores.present.any():
            return
        path = str(self._dataset.file_list[index][0])
        ground_truth = np.where(labels == self._dataset.ignore_index, UNLABELED, labels)
        maps = shrink(ground_truth), shrink(prediction)
        image = EvaluatedImage(scores.miou, index, path, self._name(path), scores.iou, *maps)
        insort(self._images, image)
        _drop_middle(self._images)

    def gather(self):
        """The worst and the best images of all processes: two lists, the most extreme first.

        Each image is in one list only, also where there are few.
        """
        images = sorted(chain.from_iterable(distributed.all_gather(self._images)))
        _drop_middle(images)
        half = (len(images) + 1) // 2
        return images[:half], images[half:][::-1]

    def _name(self, path):
        """The path of a file relative to the data set's folder."""
        root = getattr(self._dataset, "dataset_root", None) or os.path.dirname(path)
        path = Path(path)
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _drop_middle(images):
    """Keep the first and the last ``MAX_IMAGES`` of a sorted list."""
    del images[MAX_IMAGES:-MAX_IMAGES]
