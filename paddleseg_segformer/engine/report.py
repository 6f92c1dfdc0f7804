"""An evaluation as one page to read: figures, classes, confusions, the worst and best images."""

import base64
import io
import os
import re
from bisect import insort
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from .. import device
from ..data.image_io import read_image
from ..errors import RunError
from ..fs import atomic_write
from ..inference.visualize import color_table
from . import distributed
from .metrics import Scores

PAGE = "report.html"
PICTURE = re.compile(r"(worst|best)_[0-9]+_(photo\.jpg|prediction\.png|truth\.png)")
WIDTH = 640  # pixels of a picture, at most
UNLABELED = 255
MAX_CONFUSION_PAIRS = 15
MIN_LEGEND_SHARE = (
    0.005  # of an image: a class that is wrong on so few pixels has no place in its legend
)
JPEG_QUALITY = (cv2.IMWRITE_JPEG_QUALITY, 85)


class EvaluatedImage(NamedTuple):
    """An image, and what a model made of it. The first sorts before others if it is worse.

    Attributes:
        miou: Mean IoU over the classes that occur in its labels.
        index: Its number in the data set.
        path: The image's file.
        name: What the page calls it.
        iou: float64 array ``[classes]``; NaN where a class does not occur in its labels.
        truth, prediction: uint8 label maps ``[h, w]``, as made by ``shrink``.
    """

    miou: float
    index: int
    path: str
    name: str
    iou: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray


def shrink(labels):
    """A label map as the page shows it: uint8, at most ``WIDTH`` wide."""
    height, width = labels.shape
    size = (min(width, WIDTH), max(1, round(height * min(1, WIDTH / width))))
    return cv2.resize(labels.astype("uint8"), size, interpolation=cv2.INTER_NEAREST)


def write_report(folder, figures, worst, best, palette, about):
    """Write ``report.html``, which needs no other file, and its pictures as files beside it.

    Args:
        folder: An existing folder.
        figures: What ``tools/val.py --json`` writes.
        worst, best: Lists of ``EvaluatedImage``, in the order to be shown.
        palette: uint8 array ``[classes, 3]``, RGB.
        about: Texts: ``model``, ``data``, ``weights``, ``device`` and ``config``.

    Returns:
        The page's path.

    Raises:
        InputError: An image cannot be read.
        RunError: A file cannot be written.
    """
    classes = _classes(figures, palette)
    galleries, contents = {}, {}
    for kind, examples in (("worst", worst), ("best", best)):
        pictures = [_pictures(example, palette) for example in examples]
        galleries[kind] = [_card(*pair, classes) for pair in zip(examples, pictures)]
        for number, named in enumerate(pictures, 1):
            contents.update({f"{kind}_{number}_{name}": named[name] for name in named})
    contents[PAGE] = _render(
        figures=figures,
        about=about,
        test_config=describe_test_config(figures["protocol"]),
        classes=[entry for entry in classes if entry["iou"] is not None],
        confusions=_confusions(figures["confusion"], classes),
        galleries=galleries,
        versions=device.versions(),
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    )
    try:
        for old in Path(folder).iterdir():
            if PICTURE.fullmatch(old.name):  # of an earlier page, which may have shown more
                old.unlink()
        for name, content in contents.items():
            atomic_write(Path(folder) / name, content)
    except OSError as error:
        raise RunError(f"--report {folder}: cannot be written ({error.strerror}).") from error
    return Path(folder) / PAGE


def describe_test_config(test_config):
    """A ``TestConfig``'s fields, as a dictionary, in a sentence."""
    scales, crop, stride = (test_config[key] for key in ("scales", "crop_size", "stride"))
    flips = {
        "left to right": test_config["flip_horizontal"],
        "upside down": test_config["flip_vertical"],
    }
    flips = [name for name, wanted in flips.items() if wanted]
    parts = [
        "in windows of {} by {} pixels, {} by {} apart".format(*crop, *stride) if crop else "whole",
        "at scale " + ", ".join(f"{scale:g}" for scale in scales),
        f"as it is and mirrored {' and '.join(flips)}" if flips else "not mirrored",
    ]
    views = len(scales) * 2 ** len(flips)
    mean = f"; the mean softmax of {views} views decides" if views > 1 else ""
    return f"Each image is seen {', '.join(parts)}{mean}."


def top_confusions(confusion, most=MAX_CONFUSION_PAIRS):
    """The pairs of a true class and another one predicted for it that have the most pixels.

    Args:
        confusion: Pixels, ``[classes, classes]``; rows are true classes.
        most: How many pairs at most.

    Returns:
        A list of (true class, predicted class, pixels), the most pixels first.
    """
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)))
    return [(true, other, int(wrong[true, other])) for true, other in pairs if wrong[true, other]]


def _classes(figures, palette):
    """What the page says of each class."""
    pixels = np.sum(figures["confusion"], axis=1)
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in color_table(palette)]
    return [
        {**entry, "index": i, "color": colors[i], "share": pixels[i] / max(pixels.sum(), 1)}
        for i, entry in enumerate(figures["classes"])
    ]


def _confusions(confusion, classes):
    """What the page says of confusions: the pairs, and their share of all wrong pixels."""
    confusion = np.array(confusion)
    pixels, wrong = confusion.sum(), confusion.sum() - np.trace(confusion)
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
    return {"pairs": pairs, "share": sum(pair["pixels"] for pair in pairs) / max(wrong, 1)}


def _card(example, files, classes):
    """What the page says of an image."""
    height, width = example.truth.shape
    return {
        "name": example.name,
        "path": example.path,
        "miou": example.miou,
        "height": height,
        "width": width,
        "pictures": [_data_uri(name, content) for name, content in files.items()],
        "legend": _legend(example, classes),
    }


def _legend(example, classes):
    """The classes in an image's labels, the largest first, then others that were predicted."""
    true, found = (
        np.bincount(labels.ravel(), minlength=256)[: len(classes)]
        for labels in (example.truth, example.prediction)
    )
    shown = ~np.isnan(example.iou) | (found > MIN_LEGEND_SHARE * example.prediction.size)
    order = sorted(np.flatnonzero(shown), key=lambda i: (-true[i], -found[i]))
    scores = [None if np.isnan(iou) else float(iou) for iou in example.iou]
    return [{**classes[i], "iou": scores[i]} for i in order]


def _pictures(example, palette):
    """The bytes of an image's files, by the end of their names."""
    size = example.truth.shape[::-1]
    photo = cv2.resize(read_image(example.path), size, interpolation=cv2.INTER_AREA)
    return {
        "photo.jpg": cv2.imencode(".jpg", photo, JPEG_QUALITY)[1].tobytes(),
        "prediction.png": _png(example.prediction, palette),
        "truth.png": _png(example.truth, palette),
    }


def _png(labels, palette):
    """A label map in its classes' colors, see-through where there is no label."""
    picture = Image.fromarray(labels)
    picture.putpalette(color_table(palette).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, transparency=UNLABELED)
    return file.getvalue()


def _data_uri(name, content):
    kind = "jpeg" if name.endswith(".jpg") else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _render(**values):
    """The page's bytes; all text in it is escaped."""
    import jinja2  # of use to few runs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # As in the log.
    environment.filters["score"] = lambda value: "n/a" if value is None else f"{value:.4f}"
    environment.filters["percent"] = lambda value: f"{value:.2%}"
    return environment.get_template(PAGE).render(**values).encode()


KEPT = 8  # of each


class WorstBestImages:
    """Keeps the worst and the best images of an evaluation, as small pictures.

    Args:
        dataset: The PaddleSeg data set that is evaluated.
    """

    def __init__(self, dataset):
        self._dataset, self._kept = dataset, []

    def __call__(self, index, labels, predicted, confusion):
        """Look at an image; see ``evaluate``. One without labels has no score and is left out."""
        scores = Scores(confusion, [])
        if not scores.present.any():
            return
        path = str(self._dataset.file_list[index][0])
        truth = np.where(labels == self._dataset.ignore_index, UNLABELED, labels)
        maps = shrink(truth), shrink(predicted)
        example = EvaluatedImage(scores.miou, index, path, self._name(path), scores.iou, *maps)
        insort(self._kept, example)
        _drop_the_middle(self._kept)

    def worst_and_best(self):
        """The images of all processes: two lists of ``EvaluatedImage``, the most extreme first.

        Where there are too few images for both, each is in one of them.
        """
        kept = sorted(example for share in distributed.all_gather(self._kept) for example in share)
        _drop_the_middle(kept)
        half = (len(kept) + 1) // 2
        return kept[:half], kept[half:][::-1]

    def _name(self, path):
        """A file's path in the data set's folder."""
        root = getattr(self._dataset, "dataset_root", None) or os.path.dirname(path)
        path = Path(path)
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _drop_the_middle(kept):
    """Leave the ``KEPT`` first and the ``KEPT`` last of a sorted list."""
    del kept[KEPT:-KEPT]
