"""Logs, curves and example images of a run, against values worked out by hand."""

import json
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from training_runs import run, tiny_config

from paddleseg_segformer.engine import metric_writer
from paddleseg_segformer.engine import trainer as trainer_module
from paddleseg_segformer.engine.dataloader import BatchReader
from paddleseg_segformer.engine.metric_writer import (
    AverageMeter,
    ExampleImages,
    MetricWriter,
    draw_curves,
    read_lines,
)
from paddleseg_segformer.engine.metrics import Scores
from paddleseg_segformer.engine.options import TrainOptions
from paddleseg_segformer.engine.train_step import TrainStep
from paddleseg_segformer.engine.trainer import Trainer
from paddleseg_segformer.weights import read_saved_dict


class Clock:
    """In place of the module ``time``."""

    now = 0.0

    def perf_counter(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metric_writer, "time", clock)
    return clock


def train_lines(save_dir):
    return [line for line in read_lines(save_dir) if line["kind"] == "train"]


def test_averages_are_over_the_steps_since_the_last_ones(clock):
    """Of two losses; a skipped step counts in the times only, an evaluation not at all."""
    meter = AverageMeter(batch_size=12, iters=100)
    steps = [((1.0, 0.5), 4.0), None, ((2.0, 1.5), 8.0)]
    for result in steps:
        clock.now += 2  # reading
        meter.batch_ready()
        clock.now += 3  # the step
        meter.step_done(*(result or ()))
        clock.now += 50  # an evaluation
        meter.restart_clock()
    expected = {"loss": 1.5 + 1.0, "loss_0": 1.5, "loss_1": 1.0, "gradient_norm": 6.0}
    expected.update(batch_cost=5.0, reader_cost=2.0, ips=12 / 5, eta=5.0 * 90)
    assert meter.compute(10) == expected
    clock.now += 1
    meter.step_done([7.0], 9.0)
    found = meter.compute(11)
    assert (found["loss"], found["gradient_norm"], found["batch_cost"]) == (7.0, 9.0, 1.0)
    clock.now += 1
    meter.step_done()
    assert np.isnan(meter.compute(12)["loss"])


@pytest.mark.integration
def test_times_of_a_run(clock, scenes, tmp_path, monkeypatch, caplog):
    """Each micro-batch takes 10 s to read, each step 5 s, each evaluation 1000 s."""

    def slow(seconds, function):
        def call(*arguments, **keywords):
            clock.now += seconds
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(BatchReader, "__call__", slow(10, BatchReader.__call__))
    monkeypatch.setattr(TrainStep, "__call__", slow(5, TrainStep.__call__))
    monkeypatch.setattr(trainer_module, "evaluate", slow(1000, trainer_module.evaluate))
    caplog.set_level("INFO", "paddleseg_segformer")
    run(tiny_config(scenes, iters=4), tmp_path, do_eval=True, num_workers=0)
    names = ("batch_cost", "reader_cost", "ips", "eta")
    times = [[line[name] for name in names] for line in train_lines(tmp_path)]
    assert times == [[25, 20, 4 / 25, 25 * left] for left in (3, 2, 1, 0)]
    logged = [re.search(r"epoch: .*", line)[0] for line in caplog.messages if "[TRAIN]" in line]
    lines = train_lines(tmp_path)
    assert logged == [  # four of six images a step
        f"epoch: {epoch}, iter: {i}/4, loss: {line['loss']:.4f}, lr: {line['lr']['base']:.6g}, "
        f"batch_cost: 25.0000, reader_cost: 20.0000, ips: 0.16 images/s | ETA {eta}"
        for line, i, epoch, eta in zip(
            lines, (1, 2, 3, 4), (1, 2, 2, 3), ("0:01:15", "0:00:50", "0:00:25", "0:00:00")
        )
    ]


@pytest.mark.integration
def test_the_logged_loss_is_the_mean_over_the_interval(scenes, tmp_path):
    for interval in (1, 3):
        config = tiny_config(scenes, iters=7)
        run(config, tmp_path / f"{interval}", log_iters=interval, save_interval=100)
    each, means = (train_lines(tmp_path / name) for name in ("1", "3"))
    assert [line["iteration"] for line in means] == [3, 6, 7]
    for name in ("loss", "gradient_norm"):
        values = [line[name] for line in each]
        expected = [np.mean(values[:3]), np.mean(values[3:6]), values[6]]
        np.testing.assert_allclose([line[name] for line in means], expected, rtol=1e-9)
        assert len(set(values)) == 7


@pytest.mark.integration
def test_logged_rates_are_those_of_the_parameter_groups(scenes, tmp_path):
    """Adam's first step changes a weight by the rate, if its gradient is far above epsilon."""
    groups = "[{name: linear_, lr_mult: 10}, {name: norm, lr_mult: 0.5}]"
    optimizer = f"optimizer={{type: AdamW, weight_decay: 0.0, custom_cfg: {groups}}}"
    schedule = "lr_scheduler={type: PolynomialDecay, learning_rate: 0.01, end_lr: 0.0, power: 1.0}"
    config = tiny_config(scenes, optimizer, schedule, iters=4)
    options = TrainOptions(save_dir=str(tmp_path), save_interval=1, log_iters=1)
    trainer = Trainer(config, options, None)
    before = {name: value.numpy() for name, value in trainer.step.model.named_parameters()}
    trainer.run()
    first, second, *_ = (line["lr"] for line in train_lines(tmp_path))
    assert first == pytest.approx({"base": 0.01, "linear_": 0.1, "norm": 0.005})
    assert second == pytest.approx({"base": 0.0075, "linear_": 0.075, "norm": 0.00375})
    after, steps = read_saved_dict(tmp_path / "iter_1/model.pdparams"), {}
    for name, value in before.items():
        if not name.endswith(("._mean", "._variance")):
            group = next((group for group in ("linear_", "norm") if group in name), "base")
            step = np.abs(after[name] - value).max()
            steps[group] = max(step, steps.get(group, 0))
    assert steps == pytest.approx(first, rel=1e-3)


LINES = [
    {"kind": "train", "iteration": 10, "loss": 3.0, "lr": {"base": 0.1, "head": 1.0}},
    {"kind": "eval", "iteration": 10, "miou": 0.25, "accuracy": 0.0},
    {"kind": "ema_eval", "iteration": 10, "miou": 0.125, "accuracy": 0.0},
    {"kind": "skipped_step", "iteration": 15, "text": ""},
    {"kind": "train", "iteration": 20, "loss": None, "lr": {"base": 0.05, "head": 0.5}},
    {"kind": "train", "iteration": 30, "loss": 2.0, "lr": {"base": 0.025, "head": 0.25}},
    {"kind": "eval", "iteration": 30, "miou": 0.5, "accuracy": 0.0},
    {"kind": "ema_eval", "iteration": 30, "miou": 0.75, "accuracy": 0.0},
    {"kind": "train", "iteration": 40, "loss": 1.5, "lr": {"base": 0.0, "head": 0.0}},
]
ITERATIONS = [10, 20, 30, 40]
CURVES = {
    "loss": {"loss": (ITERATIONS, [3.0, np.nan, 2.0, 1.5])},
    "learning rate": {
        "base": (ITERATIONS, [0.1, 0.05, 0.025, 0.0]),
        "head": (ITERATIONS, [1.0, 0.5, 0.25, 0.0]),
    },
    "mIoU": {"model": ([10, 30], [0.25, 0.5]), "EMA": ([10, 30], [0.125, 0.75])},
}


def test_curves(tmp_path, monkeypatch):
    saved, save = [], Figure.savefig

    def savefig(figure, *arguments, **keywords):
        saved.append(figure)
        save(figure, *arguments, **keywords)

    monkeypatch.setattr(Figure, "savefig", savefig)
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    draw_curves(tmp_path)
    (figure,) = saved
    assert [axes.get_title() for axes in figure.axes] == list(CURVES)
    for axes, curves in zip(figure.axes, CURVES.values()):
        assert axes.get_xlabel() == "iteration"
        assert [line.get_label() for line in axes.lines] == list(curves)
        legend = axes.get_legend()
        names = [text.get_text() for text in legend.get_texts()] if legend else []
        assert names == (list(curves) if len(curves) > 1 else [])
        for line, (iterations, values) in zip(axes.lines, curves.values()):
            np.testing.assert_array_equal(line.get_xdata(), iterations)
            np.testing.assert_array_equal(np.array(line.get_ydata(), dtype=float), values)
    picture = cv2.imread(str(tmp_path / "curves.png"))
    assert picture.shape == (350, 1200, 3)
    colored = np.ptp(picture.astype(int), axis=2) > 100  # the lines are colored, the rest is gray
    assert all(third.sum() > 100 for third in np.split(colored, 3, axis=1))


# Colors are BGR in images that OpenCV reads and writes, and RGB in a palette.
IMAGE_BGR, PALETTE_RGB = (20, 60, 200), np.array([[0, 100, 250], [240, 0, 80], [90, 220, 0]])


def overlaid(label):
    return [(a + b) / 2 for a, b in zip(IMAGE_BGR, PALETTE_RGB[label][::-1])]


@pytest.fixture
def example(tmp_path):
    """An image; its ground truth and prediction, as their left and right halves; the rows."""
    path = tmp_path / "image.png"
    cv2.imwrite(str(path), np.full([40, 80, 3], IMAGE_BGR, dtype="uint8"))
    dataset = SimpleNamespace(
        file_list=[["other"], [str(path)]], PALETTE=PALETTE_RGB, num_classes=3
    )
    examples = ExampleImages(dataset)
    truth, predicted = np.zeros([2, 40, 80], dtype="int64")
    truth[:, 40:], predicted[:, :40], predicted[:, 40:] = 1, 2, 0
    examples(1, truth, predicted, None)
    return examples, truth


def test_examples_are_image_ground_truth_and_prediction(example):
    examples, _ = example
    (row,) = examples.rows
    assert row.shape == (240, 3 * 480, 3)
    halves = row[120, 120::240].tolist()  # the middle of the left and right half of each panel
    expected = [IMAGE_BGR, IMAGE_BGR, *(overlaid(label) for label in (0, 1, 2, 0))]
    np.testing.assert_allclose(halves, expected, atol=0.51)


def test_the_number_of_examples_is_limited_and_other_sizes_are_left_out(example):
    examples, truth = example
    examples(1, truth[:, :-1], truth[:, :-1], None)
    assert len(examples.rows) == 1
    for _ in range(9):
        examples(1, truth, truth, None)
    assert len(examples.rows) == 4


class LogWriter:
    """In place of VisualDL's."""

    def __init__(self, folder):
        self.scalars, self.images = {}, {}

    def add_scalar(self, tag, value, step):
        self.scalars.setdefault(tag, []).append((step, value))

    def add_image(self, tag, image, step):
        self.images[tag] = image

    def close(self):
        pass


SCORES = Scores(np.array([[3, 1], [0, 4]]), ["wall", "sky/cloud"])  # IoU 3/4 and 4/5


def test_an_evaluation_in_all_outputs(tmp_path, example, monkeypatch):
    examples, _ = example
    monkeypatch.setattr("visualdl.LogWriter", LogWriter)
    writer = MetricWriter(tmp_path, 0, 0, use_vdl=True)
    writer.evaluation(7, SCORES, "", examples.rows)
    writer.evaluation(7, SCORES, "ema_", [])
    writer.close()
    scores = {"iteration": 7, "miou": 0.775, "accuracy": 0.875}
    ious = {"iou": {"wall": 0.75, "sky/cloud": 0.8}}
    found = read_lines(tmp_path)
    assert found == [{"kind": kind, **scores, **ious} for kind in ("eval", "ema_eval")]
    expected = {"mIoU": 0.775, "Acc": 0.875, "IoU/wall": 0.75, "IoU/sky_cloud": 0.8}
    tags = {f"Evaluate/{prefix}{tag}": v for prefix in ("", "ema_") for tag, v in expected.items()}
    assert writer._vdl.scalars == {tag: [(7, pytest.approx(v))] for tag, v in tags.items()}
    sheet = cv2.imread(str(tmp_path / "examples.jpg"))
    np.testing.assert_allclose(sheet[120, 120], IMAGE_BGR, atol=3)
    image = writer._vdl.images["Evaluate/examples"]
    assert image[120, 120].tolist() == list(IMAGE_BGR[::-1])


def test_training_metrics_in_all_outputs(tmp_path, monkeypatch):
    monkeypatch.setattr("visualdl.LogWriter", LogWriter)
    writer = MetricWriter(tmp_path, 0, 0, use_vdl=True)
    metrics = {"loss": 2.5, "gradient_norm": float("nan"), "batch_cost": 0.5}
    metrics.update(reader_cost=0.25, ips=8.0, eta=90.0)
    texts = []
    bar = SimpleNamespace(disable=False, total=20, set_postfix_str=texts.append)
    writer.train(3, 1, metrics, {"base": 0.1, "head": 1.0}, bar)
    (line,) = read_lines(tmp_path)  # before it is closed: the process may be killed
    writer.close()
    assert texts == ["loss 2.5000, lr 0.1, 8.00 images/s"]
    assert (line["loss"], line["gradient_norm"], line["lr"]["head"]) == (2.5, None, 1.0)
    assert writer._vdl.scalars["Train/loss"] == [(3, 2.5)]
    assert writer._vdl.scalars["Train/lr/head"] == [(3, 1.0)]


def test_lines_after_the_resumed_iteration_are_removed(tmp_path):
    """Those of evaluations after the last one that is not repeated; a truncated line, too."""
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    for iteration, evaluated, kept in (
        (30, 10, [0, 1, 2, 3, 4, 5]),
        (20, 10, [0, 1, 2, 3, 4]),
        (40, 30, range(9)),
        (10, 0, [0]),
    ):
        (tmp_path / "train.jsonl").write_text(text + '{"kind": "tra')
        MetricWriter(tmp_path, iteration, evaluated, use_vdl=False)._file.close()
        found = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
        assert found == [LINES[i] for i in kept]


@pytest.mark.parametrize(
    "line",
    [
        "3",
        "[" * 100_000,
        '{"kind": 3, "iteration": 1}',
        '{"kind": "eval", "iteration": "1"}',
        '{"kind": "eval", "iteration": 1e999}',
        '{"kind": "eval", "iteration": -1, "miou": 0.5}',
        '{"kind": "eval", "iteration": 1, "miou": "0.5"}',
        '{"kind": "train", "iteration": 1, "lNss": 0.5}',
        '{"kind": "train", "iteration": 1, "loss": [], "lr": {"base": 1.0}}',
        '{"kind": "train", "iteration": 1, "loss": 1.0, "lr": {"base": "x"}}',
    ],
    ids=lambda line: line[:70],
)
def test_a_damaged_line_is_left_out(line, tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in LINES[:2])
    (tmp_path / "train.jsonl").write_text(text + line + "\n")
    assert read_lines(tmp_path) == LINES[:2]
    MetricWriter(tmp_path, 100, 100, use_vdl=False).close()
    assert (tmp_path / "curves.png").stat().st_size > 0
    assert (tmp_path / "train.jsonl").read_text() == text
