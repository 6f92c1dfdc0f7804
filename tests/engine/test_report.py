"""The page of ``tools/val.py --report``, parsed as HTML; tests/browser runs it in a browser."""

import base64
import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO

import cv2
import numpy as np
import paddle
import pytest
from PIL import Image
from training_runs import CONFIG, ROOT, draw_scenes, overrides

from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.engine import validate
from paddleseg_segformer.engine.report import (
    EvaluatedImage,
    _legend,
    shrink,
    top_confusions,
    write_report,
)
from paddleseg_segformer.errors import InputError, RunError

CONFUSION = [[80, 3, 0, 1], [9, 40, 0, 0], [0, 0, 0, 0], [4, 3, 2, 58]]
FILES = ("photo.jpg", "prediction.png", "truth.png")
HARMFUL = "<script>alert(1)</script>"
PALETTE = np.array([[200, 0, 0], [0, 200, 0], [0, 0, 200], [90, 90, 90]], dtype="uint8")
WHOLE = {
    "scales": (1.0,),
    "flip_horizontal": False,
    "flip_vertical": False,
    "crop_size": None,
    "stride": None,
}


class Page(HTMLParser):
    """A parsed page: the cells of its tables, its number of scripts, its addresses."""

    def __init__(self, path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tables, self.scripts, self.addresses = [], 0, []
        self._cell = None
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action")]
        self.scripts += tag == "script"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self._cell.split()))
            self._cell = None

    @property
    def headline(self):
        return dict(re.findall(r"<dt>([\w ]+)</dt><dd>([^<]*?) ?<", self.text))

    @property
    def images(self):
        """The bytes of the embedded images."""
        return [
            base64.b64decode(address.split(",")[1])
            for address in self.addresses
            if address.startswith("data:image/")
        ]


@pytest.fixture
def report(tmp_path):
    """A report of four classes, one with markup in its name, and two images."""
    names = [HARMFUL, "sky", "tree", "a&b"]
    iou, accuracy = (0.5, 0.25, None, 0.75), (0.125, 1.0, None, 0.5)
    figures = {
        "images": 2,
        "protocol": WHOLE,
        "miou": 0.5,
        "accuracy": 178 / 200,
        "mean_accuracy": None,
        "classes": [
            {"name": name, "iou": i, "accuracy": a} for name, i, a in zip(names, iou, accuracy)
        ],
        "confusion": CONFUSION,
    }
    ground_truth = np.repeat(np.array([[0, 1, 255, 3]]), 6, axis=0)
    path = str(tmp_path / "photo.png")
    cv2.imwrite(path, np.full([6, 4, 3], [250, 90, 10], dtype="uint8"))  # blue
    images = [
        EvaluatedImage(
            *(0.25 * n, n, path, f'"><img src=x onerror={n}>', np.array([0.5, 0.25, np.nan, 0.0])),
            *(shrink(ground_truth), shrink(np.full([6, 4], 2 * n))),
        )
        for n in range(2)
    ]
    about = dict.fromkeys(("model", "data", "weights", "device", "config"), f"& {HARMFUL}")
    return write_report(tmp_path, figures, images[:1], images[1:], PALETTE, about)


def test_top_confusions():
    """Counted by hand; ties are in the order of the matrix."""
    pairs = [(1, 0, 9), (3, 0, 4), (0, 1, 3), (3, 1, 3), (3, 2, 2), (0, 3, 1)]
    assert top_confusions(CONFUSION) == pairs
    assert top_confusions(CONFUSION, 2) == pairs[:2]
    assert top_confusions(np.diag([1, 2])) == []


def test_tables(report):
    page = Page(report)
    classes, confusions = page.tables
    assert classes[1:] == [  # in ascending order of IoU, without the class that does not occur
        ["1", "sky", "0.2500", "1.0000", "24.50%"],
        ["0", HARMFUL, "0.5000", "0.1250", "42.00%"],
        ["3", "a&b", "0.7500", "0.5000", "33.50%"],
    ]
    assert confusions[1] == ["sky", HARMFUL, "18.37%", "4.50%"]  # 9 of 49, 9 of 200
    assert confusions[5] == ["a&b", "tree", "2.99%", "1.00%"]
    assert len(confusions) == 7
    assert (
        "The 6 pairs of true and predicted class with the most pixels: 100.00% of all" in page.text
    )
    headline = {"mIoU": "0.5000", "Accuracy": "0.8900", "Mean accuracy": "n/a", "Images": "2"}
    assert headline.items() <= page.headline.items()


def test_text_is_escaped(report):
    page = Page(report)
    assert page.scripts == 1 and "alert(1)<" not in page.text
    assert page.text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert all(address.startswith(("#", "data:")) for address in page.addresses)


def test_images(report):
    """Label maps in the classes' colors, transparent if unlabeled, the same in the files."""
    page = Page(report)
    files = [f"{k}_1_{n}" for k in ("worst", "best") for n in FILES]
    assert page.images == [(report.parent / name).read_bytes() for name in files]
    photo = np.asarray(Image.open(BytesIO(page.images[0])))
    np.testing.assert_allclose(photo, np.full([6, 4, 3], [10, 90, 250]), atol=3)
    truth = np.asarray(Image.open(BytesIO(page.images[2])).convert("RGBA"))
    assert truth.shape == (6, 4, 4)
    assert truth[0].tolist() == [[200, 0, 0, 255], [0, 200, 0, 255], [0] * 4, [90, 90, 90, 255]]
    prediction = np.asarray(Image.open(BytesIO(page.images[4])).convert("RGBA"))
    assert (prediction == [0, 0, 200, 255]).all()
    assert page.text.count("not in the ground truth</span>") == 1  # the class predicted by mistake


def test_legends():
    """Classes in the ground truth, the largest first; then those predicted, but not tiny ones."""
    truth = np.array([[3] * 500 + [1] * 400 + [255] * 100])
    prediction = np.array([[0] * 6 + [2] * 5 + [3] * 989])
    iou = np.array([np.nan, 0.25, np.nan, 0.5])
    image = EvaluatedImage(0.375, 0, "", "", iou, truth, prediction)
    legend = _legend(image, [{"name": name} for name in "abcd"])
    assert legend == [
        {"name": "d", "iou": 0.5},
        {"name": "b", "iou": 0.25},
        {"name": "a", "iou": None},
    ]


def test_large_label_maps_are_downsized():
    labels = np.arange(1000)[:, None] // 250 + np.zeros([1, 2000], dtype="int64")
    small = shrink(labels)
    assert small.shape == (320, 640) and small.dtype == np.uint8
    assert small[::80, 0].tolist() == [0, 1, 2, 3]


def write_empty_report(folder):
    empty = {"images": 0, "protocol": WHOLE, "classes": [], "confusion": np.zeros([0, 0], int)}
    figures = {**empty, "miou": None, "accuracy": 0.0, "mean_accuracy": None}
    about = dict.fromkeys(("model", "data", "weights", "device", "config"), "")
    write_report(folder, figures, [], [], PALETTE, about)


def test_only_images_of_an_earlier_report_are_removed(tmp_path):
    """It may have had more images."""
    old = [f"{k}_{n}_{name}" for k in ("worst", "best") for n in (1, 12) for name in FILES]
    others = ["best_3_models.xlsx", "worst_1_photo.jpg.orig", "best_2024_run_photo.jpg", "a.png"]
    for name in (*old, *others):
        (tmp_path / name).touch()
    write_empty_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", *others}


def test_a_write_error_leaves_no_page_of_other_images(tmp_path):
    """The images of an earlier report have been replaced by then."""
    (tmp_path / "report.html").write_text("old")
    (tmp_path / f".report.{os.getpid()}.partial.html").mkdir()
    with pytest.raises(RunError, match="--report"):
        write_empty_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes and an untrained model."""
    root = draw_scenes(tmp_path_factory.mktemp("scenes"))
    paddle.seed(0)
    (model,) = build(load_config(CONFIG, overrides(root)), "model")
    paddle.save(model.state_dict(), str(root / "model.pdparams"))
    return root


def evaluate(scenes, report, **options):
    config = load_config(CONFIG, overrides(scenes))
    return validate(config, scenes / "model.pdparams", report_dir=report, **options)


@pytest.fixture
def evaluated(scenes, tmp_path, caplog):
    """The report, the figures of --json, and the log."""
    caplog.set_level("INFO", "paddleseg_segformer")
    evaluate(scenes, tmp_path / "new/report", json_path=tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    return Page(tmp_path / "new/report/report.html"), figures, caplog.text


@pytest.mark.integration
def test_the_report_has_the_figures_of_the_log(evaluated):
    page, figures, log = evaluated
    names = {"miou": "mIoU", "accuracy": "Accuracy", "mean_accuracy": "Mean accuracy"}
    assert {key: page.headline[name] for key, name in names.items()} == {
        key: f"{figures[key]:.4f}" for key in names
    }
    assert f"mIoU: {page.headline['mIoU']} Acc: {page.headline['Accuracy']}" in log
    lines = log.split("Classes that occur:\n")[1].splitlines()[1:]
    logged = [line.rsplit(None, 3) for line in lines if re.search(r" \d\.\d{4} .*%$", line)]
    rows = [row[1:] for row in sorted(page.tables[0][1:], key=lambda row: int(row[0]))]
    assert rows == logged and 3 < len(rows) < 10
    assert "new/report/report.html" in log
    description = "single scale, no flip, whole image"
    assert f"[EVAL] {description}" in log and f"Test configuration: {description}." in page.text


@pytest.mark.integration
def test_the_page_is_self_contained(evaluated):
    page = evaluated[0]
    assert len(page.images) == 9
    assert all(address.startswith(("#", "data:")) for address in page.addresses)
    without_config = re.sub(r"<pre.*?</pre>", "", page.text, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(", without_config)
    assert "default-src 'none'" in page.text


@pytest.mark.integration
def test_two_processes_write_the_report_of_one(evaluated, scenes, tmp_path):
    command = [
        *(sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", "2"),
        *("tools/val.py", "--config", str(CONFIG), "--device", "cpu", "--model_path"),
        *(str(scenes / "model.pdparams"), "--report", str(tmp_path / "two")),
        *("--opts", *overrides(scenes)),
    ]
    environment = {**os.environ, "PADDLE_LOG_DIR": str(tmp_path / "log")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    one, two = (
        re.sub(r"<dt>Evaluated</dt>.*", "", page.text)
        for page in (evaluated[0], Page(tmp_path / "two/report.html"))
    )
    assert one == two


def test_an_unwritable_folder_is_rejected_before_evaluation(scenes, tmp_path, caplog):
    caplog.set_level("INFO", "paddleseg_segformer")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^--report .*file: cannot be written to"):
        evaluate(scenes, tmp_path / "file")
    assert "[EVAL]" not in caplog.text
