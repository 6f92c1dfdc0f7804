"""What a run leaves to look at: train.jsonl, VisualDL's scalars and pictures, curves.png."""

import json
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from ..data import palette
from ..fs import atomic_write
from ..inference.visualize import overlay
from ..log import logger

LINES, CURVES, EXAMPLES = "train.jsonl", "curves.png", "examples.jpg"
SHOWN = 4  # validation images
SHOWN_WIDTH = 480


class MetricWriter:
    """A run's record; of several processes, the first one's alone.

    ``train.jsonl`` has a JSON object a line: ``kind`` (``train``, ``eval``, ``ema_eval``,
    ``skipped_step``, ``replaced_sample``), ``iteration``, and the figures.

    Args:
        save_dir: The run's folder.
        iteration: Where the run begins; what train.jsonl says of later ones, which a run that was
            killed had reached, is removed. 0 begins a new file.
        evaluated: The last iteration whose evaluation is not to be repeated.
        use_vdl: Whether VisualDL gets the figures and pictures, too.
    """

    def __init__(self, save_dir, iteration, evaluated, use_vdl):
        self.save_dir = Path(save_dir)
        lines = [
            line
            for line in read_lines(save_dir)
            if line["iteration"] <= (evaluated if line["kind"].endswith("eval") else iteration)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        atomic_write(self.save_dir / LINES, text.encode())
        self._file = open(self.save_dir / LINES, "a", encoding="utf-8")  # noqa: SIM115
        self._writer = None
        if use_vdl:
            from visualdl import LogWriter  # a second to import, of use to few runs

            self._writer = LogWriter(str(save_dir))

    def line(self, kind, iteration, **facts):
        """Add a line to train.jsonl."""
        facts = {name: _finite(value) for name, value in facts.items()}
        with _unless_impossible(LINES):
            self._file.write(json.dumps({"kind": kind, "iteration": iteration, **facts}) + "\n")
            self._file.flush()

    def training(self, iteration, figures, rates):
        """Note the figures since the last time, and the learning rate of each parameter group."""
        self.line("train", iteration, **figures, lr=rates)
        self._scalars("Train", figures, iteration)
        self._scalars("Train/lr", rates, iteration)

    def evaluation(self, iteration, scores, prefix):
        """Note an evaluation's scores; ``prefix`` is ``ema_`` of the averaged model, else empty."""
        ious = {name: iou for name, iou in zip(scores.names, scores.iou) if np.isfinite(iou)}
        figures = {f"{prefix}mIoU": scores.miou, f"{prefix}Acc": scores.accuracy}
        self.line(f"{prefix}eval", iteration, miou=scores.miou, accuracy=scores.accuracy, iou=ious)
        self._scalars("Evaluate", figures, iteration)
        self._scalars(f"Evaluate/{prefix}IoU", ious, iteration)

    def examples(self, iteration, rows):
        """Draw the rows of ``EvaluatedImages``, one below the other."""
        if not rows:
            return
        sheet = np.concatenate(rows)
        with _unless_impossible(EXAMPLES):
            (self.save_dir / EXAMPLES).write_bytes(cv2.imencode(".jpg", sheet)[1])
        if self._writer is not None:
            self._writer.add_image("Evaluate/examples", sheet[..., ::-1], iteration)

    def close(self):
        """Finish the files, and draw the curves."""
        with _unless_impossible(LINES):
            self._file.close()
        if self._writer is not None:
            self._writer.close()
        with _unless_impossible(CURVES):
            draw_curves(self.save_dir)
            logger.info("Curves: %s", self.save_dir / CURVES)

    def _scalars(self, group, figures, iteration):
        for name, value in figures.items() if self._writer is not None else ():
            self._writer.add_scalar(f"{group}/{name.replace('/', '_')}", value, iteration)


def read_lines(save_dir):
    """The lines of a folder's train.jsonl, as dictionaries; one that was cut short is left out."""
    path, lines = Path(save_dir) / LINES, []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with suppress(ValueError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and {"kind", "iteration"} <= {*line}]


def draw_curves(save_dir):
    """Draw curves.png of a folder's train.jsonl: loss, learning rate, mIoU."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a second to import
    from matplotlib.figure import Figure

    lines = read_lines(save_dir)
    curves = {"loss": {}, "learning rate": {}, "mIoU": {}}
    for line in lines:
        if line["kind"] == "train":
            curves["loss"].setdefault("loss", []).append((line["iteration"], line["loss"]))
            for group, rate in line["lr"].items():
                points = curves["learning rate"].setdefault(group, [])
                points.append((line["iteration"], rate))
        elif line["kind"].endswith("eval"):
            name = "averaged weights" if line["kind"].startswith("ema") else "weights"
            curves["mIoU"].setdefault(name, []).append((line["iteration"], line["miou"]))
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, named) in zip(figure.subplots(1, 3), curves.items()):
        for name, points in named.items():
            axes.plot(*zip(*points), marker="o" * (title == "mIoU"), label=name)
        axes.set(title=title, xlabel="iteration")
        if len(named) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(save_dir) / CURVES, dpi=100)


class ExampleImages:
    """The first images of an evaluation, each beside its labels and its prediction.

    To be called as ``evaluate`` calls its ``observe``.

    Attributes:
        rows: uint8 arrays ``[h, 3 w, 3]``, BGR.
    """

    def __init__(self, dataset):
        self.dataset, self.rows = dataset, []

    def __call__(self, index, labels, predicted, _):
        """Keep an image, if it is one to look at and there are not enough."""
        if len(self.rows) == SHOWN:
            return
        image = cv2.imread(str(self.dataset.file_list[index][0]), cv2.IMREAD_COLOR)
        if image is None or image.shape[:2] != labels.shape:
            return
        colors = palette(self.dataset)[:, ::-1]
        maps = (labels.astype("uint8"), predicted.astype("uint8"))
        panels = [image, *(overlay(image, labels, colors) for labels in maps)]
        size = (SHOWN_WIDTH, round(image.shape[0] * SHOWN_WIDTH / image.shape[1]))
        panels = [cv2.resize(panel, size, interpolation=cv2.INTER_AREA) for panel in panels]
        self.rows.append(np.concatenate(panels, axis=1))


@contextmanager
def _unless_impossible(name):
    """A full disk costs the record, not the run."""
    try:
        yield
    except OSError as error:
        logger.warning("%s cannot be written (%s)", name, error.strerror)


def _finite(value):
    """JSON has no NaN."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
