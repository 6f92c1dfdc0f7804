"""Training metrics: running averages, log lines, train.jsonl, VisualDL, curves and examples."""

import json
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ..data import palette
from ..data.image_io import read_pair
from ..errors import InputError
from ..fs import atomic_write
from ..inference.visualize import overlay, to_picture
from ..log import eta_text, log_write_error, logger
from . import distributed
from .metrics import finite_or_none

METRICS_FILE, CURVES_FILE, EXAMPLES_FILE = "train.jsonl", "curves.png", "examples.jpg"
MAX_EXAMPLES = 4
EXAMPLE_WIDTH = 480  # pixels of each of the three panels


class AverageMeter:
    """Running averages of losses, gradient norm and timing between two log lines."""

    def __init__(self, batch_size, iters):
        self.batch_size = batch_size  # images per optimizer step, over all processes
        self.iters = iters  # last iteration of the run
        self.restart_clock()
        self._reset()

    def _reset(self):
        self.steps, self.losses, self.norms = 0, [], []
        self.reader_seconds = self.seconds = 0.0

    def restart_clock(self):
        """Start timing the next step; the time since the last one is not counted."""
        self.start = time.perf_counter()

    def batch_ready(self):
        """Note that the step's data is loaded."""
        self.reader_seconds += time.perf_counter() - self.start

    def step_done(self, losses=None, norm=None):
        """Add a step's losses and gradient norm; None for a skipped step."""
        self.steps += 1
        if losses is not None:
            self.losses.append(losses)
            self.norms.append(norm)
        now = time.perf_counter()
        self.seconds += now - self.start
        self.start = now

    def compute(self, iteration):
        """The averages since the last call, times in seconds; NaN if all steps were skipped."""
        losses = [_mean(column) for column in zip(*self.losses)]
        batch_cost = self.seconds / self.steps
        metrics = {
            "loss": sum(losses) if losses else float("nan"),
            "gradient_norm": _mean(self.norms),
            "batch_cost": batch_cost,
            "reader_cost": self.reader_seconds / self.steps,
            "ips": self.batch_size * self.steps / self.seconds,
            "eta": batch_cost * (self.iters - iteration),
        }
        if len(losses) > 1:
            metrics.update({f"loss_{i}": loss for i, loss in enumerate(losses)})
        self._reset()
        return metrics


def _mean(values):
    return sum(values) / len(values) if values else float("nan")


class MetricWriter:
    """Writes a run's metrics: log, train.jsonl, VisualDL. Only the first process writes files.

    Each line of ``train.jsonl`` is a JSON object with ``kind`` (``train``, ``eval``, ``ema_eval``,
    ``skipped_step``, ``replaced_sample``), ``iteration`` and the metrics.

    Args:
        save_dir: The run's folder.
        iteration: Where the run starts; later lines, from a run that was killed, are removed.
        evaluated: Iteration of the last evaluation that is not repeated.
        use_vdl: Whether to write VisualDL scalars and images, too.

    Raises:
        OSError: The folder cannot be written to.
    """

    def __init__(self, save_dir, iteration, evaluated, use_vdl):
        self.save_dir = Path(save_dir)
        self._file = self._vdl = None
        if distributed.rank() != 0:
            return
        text = ""
        for line in read_lines(save_dir):
            last = evaluated if line["kind"].endswith("eval") else iteration
            text += json.dumps(line) + "\n" if line["iteration"] <= last else ""
        atomic_write(self.save_dir / METRICS_FILE, text.encode())
        self._file = open(self.save_dir / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        if use_vdl:
            from visualdl import LogWriter  # takes a second to import

            self._vdl = LogWriter(str(save_dir))

    def train(self, iteration, epoch, metrics, rates, bar):
        """Write the metrics of ``AverageMeter`` and the groups' learning rates to bar or log."""
        self._write_line("train", iteration, **metrics, lr=rates)
        self._write_scalars("Train", metrics, iteration)
        self._write_scalars("Train/lr", rates, iteration)
        loss, ips, lr = metrics["loss"], metrics["ips"], rates["base"]
        if not bar.disable:
            bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.3g}, {ips:.2f} images/s")
            return
        logger.info(
            f"[TRAIN] epoch: {epoch}, iter: {iteration}/{bar.total}, loss: {loss:.4f}, "
            f"lr: {lr:.6g}, batch_cost: {metrics['batch_cost']:.4f}, "
            f"reader_cost: {metrics['reader_cost']:.4f}, ips: {ips:.2f} images/s | "
            f"ETA {eta_text(metrics['eta'])}"
        )

    def skip(self, kind, iteration, text):
        """Log a ``skipped_step`` or ``replaced_sample``."""
        logger.warning(text)
        self._write_line(kind, iteration, text=text)

    def evaluation(self, iteration, scores, prefix, examples):
        """Write an evaluation's ``Scores`` and example images; ``prefix`` is "" or "ema_"."""
        ious = {name: iou for name, iou in zip(scores.names, scores.iou) if np.isfinite(iou)}
        miou, accuracy = scores.miou, scores.accuracy
        self._write_line(f"{prefix}eval", iteration, miou=miou, accuracy=accuracy, iou=ious)
        totals = {f"{prefix}mIoU": miou, f"{prefix}Acc": accuracy}
        self._write_scalars("Evaluate", totals, iteration)
        self._write_scalars(f"Evaluate/{prefix}IoU", ious, iteration)
        if self._file is None or not examples:
            return
        sheet = np.concatenate(examples)
        with log_write_error(EXAMPLES_FILE):
            (self.save_dir / EXAMPLES_FILE).write_bytes(cv2.imencode(".jpg", sheet)[1])
        if self._vdl is not None:
            self._vdl.add_image("Evaluate/examples", sheet[..., ::-1], iteration)

    def close(self):
        """Close the files and draw the curves."""
        if self._file is None:
            return
        with log_write_error(METRICS_FILE):
            self._file.close()
        if self._vdl is not None:
            self._vdl.close()
        try:
            with log_write_error(CURVES_FILE):
                draw_curves(self.save_dir)
                logger.info("Curves: %s", self.save_dir / CURVES_FILE)
        except (ValueError, ArithmeticError) as error:  # of Matplotlib, for values near 1e308
            logger.warning("%s cannot be drawn (%s)", CURVES_FILE, error)

    def _write_line(self, kind, iteration, **metrics):
        if self._file is None:
            return
        for name, value in metrics.items():
            metrics[name] = finite_or_none(value) if isinstance(value, float) else value
        with log_write_error(METRICS_FILE):
            self._file.write(json.dumps({"kind": kind, "iteration": iteration, **metrics}) + "\n")
            self._file.flush()

    def _write_scalars(self, group, values, iteration):
        for name, value in values.items() if self._vdl is not None else ():
            self._vdl.add_scalar(f"{group}/{name.replace('/', '_')}", value, iteration)


def read_lines(save_dir):
    """The lines of a folder's train.jsonl, as dictionaries; damaged ones are left out."""
    path, lines = Path(save_dir) / METRICS_FILE, []
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with suppress(ValueError, RecursionError):
            lines.append(json.loads(line))
    return [line for line in lines if isinstance(line, dict) and _is_complete(line)]


def _is_complete(line):
    """Whether a line has what resuming and the curves need."""
    kind, iteration = line.get("kind"), line.get("iteration")
    if not isinstance(kind, str) or type(iteration) is not int or not 0 <= iteration < 1 << 63:
        return False
    numbers = [line.get("miou")] if kind.endswith("eval") else []
    if kind == "train":
        if not isinstance(line.get("lr"), dict):
            return False
        numbers = [line.get("loss"), *line["lr"].values()]
    return all(number is None or isinstance(number, (int, float)) for number in numbers)


def draw_curves(save_dir):
    """Draw curves.png from a folder's train.jsonl: loss, learning rate, mIoU."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # takes a second to import
    from matplotlib.figure import Figure

    curves = {title: defaultdict(list) for title in ("loss", "learning rate", "mIoU")}
    for line in read_lines(save_dir):
        if line["kind"] == "train":
            curves["loss"]["loss"].append((line["iteration"], line["loss"]))
            for group, rate in line["lr"].items():
                curves["learning rate"][group].append((line["iteration"], rate))
        elif line["kind"].endswith("eval"):
            name = "EMA" if line["kind"].startswith("ema") else "model"
            curves["mIoU"][name].append((line["iteration"], line["miou"]))
    figure = Figure(figsize=(12, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, named) in zip(figure.subplots(1, 3), curves.items()):
        for name, points in named.items():
            axes.plot(*zip(*points), marker="o" * (title == "mIoU"), label=name)
        axes.set(title=title, xlabel="iteration")
        if len(named) > 1:
            axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(Path(save_dir) / CURVES_FILE, dpi=100)


class ExampleImages:
    """Collects the first images of an evaluation as its ``observe`` callback.

    Attributes:
        rows: Image, ground truth and prediction side by side: uint8 arrays ``[h, 3 w, 3]``, BGR.
    """

    def __init__(self, dataset):
        self.dataset, self.rows = dataset, []

    def __call__(self, index, labels, predicted, _):
        """Add an image, unless there are enough or its size differs from its ground truth's."""
        if len(self.rows) == MAX_EXAMPLES:
            return
        try:
            channels = getattr(self.dataset, "img_channels", 3)
            image, _ = read_pair(str(self.dataset.file_list[index][0]), None, channels)
        except InputError:  # a format that only the dataset reads
            return
        if image.shape[:2] != labels.shape:
            return
        image = cv2.cvtColor(to_picture(image), cv2.COLOR_RGB2BGR)
        colors = palette(self.dataset)[:, ::-1]
        maps = (labels.astype("uint8"), predicted.astype("uint8"))
        panels = [image, *(overlay(image, label_map, colors) for label_map in maps)]
        size = (EXAMPLE_WIDTH, round(image.shape[0] * EXAMPLE_WIDTH / image.shape[1]))
        panels = [cv2.resize(panel, size, interpolation=cv2.INTER_AREA) for panel in panels]
        self.rows.append(np.concatenate(panels, axis=1))
