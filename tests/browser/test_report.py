"""The page of ``tools/val.py --report`` in a browser: layout and keyboard control."""

import io

import numpy as np
import paddle
import pytest
from PIL import Image

from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import validate

pytestmark = pytest.mark.slow

CONFIG = "configs/quickstart.yaml"


@pytest.fixture(scope="module")
def report(tmp_path_factory, request):
    """The URL of a report of three images and an untrained model."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=1, val=3, size=(128, 96))
    opts = [f"{split}_dataset.dataset_root={root}" for split in ("train", "val")]
    config = load_config(request.config.rootpath / CONFIG, opts)
    paddle.seed(0)
    (model,) = build(config, "model")
    paddle.save(model.state_dict(), str(root / "model.pdparams"))
    validate(config, root / "model.pdparams", report_dir=root / "report")
    return (root / "report/report.html").as_uri()


@pytest.fixture
def opened(page, report):
    page.goto(report)
    return page


def column(page, number):
    """A column of the table of classes."""
    cells = page.locator(f"table >> nth=0 >> tbody tr > :nth-child({number})")
    return [text.strip() for text in cells.all_inner_texts()]


def tab_to(page, name):
    """Press Tab until the control of this name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(document.activeElement.ariaLabel || document.activeElement.innerText).trim()"
        )
        if focused.startswith(name):
            return
    raise AssertionError(f"Tab never reaches {name}")


def test_sorting_by_keyboard(opened):
    """Enter sorts, Enter again reverses; ``aria-sort`` is set."""
    head = opened.get_by_role("columnheader", name="Pixels").first
    before = column(opened, 5)
    shares = [float(text.rstrip("%")) for text in before]
    tab_to(opened, "Pixels")
    opened.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert column(opened, 5) == [before[i] for i in np.argsort(np.negative(shares), kind="stable")]
    opened.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    assert [float(text.rstrip("%")) for text in column(opened, 5)] == sorted(shares)
    assert opened.locator("table >> nth=0 >> [aria-sort]:not([aria-sort=none])").count() == 1

    opened.keyboard.press("Shift+Tab")
    opened.keyboard.press("Shift+Tab")
    opened.keyboard.press("Shift+Tab")  # by Accuracy and IoU to Class
    opened.keyboard.press("Enter")
    names = column(opened, 2)
    assert names == sorted(names) and len(names) > 3


def screenshot(page):
    """The first image as displayed: float array ``[h, w, 3]``, without the captions at its top."""
    image = Image.open(io.BytesIO(page.locator(".frame").first.screenshot()))
    pixels = np.asarray(image.convert("RGB")).astype(float)
    return pixels[len(pixels) // 8 :]


def test_the_line_between_prediction_and_ground_truth_moves(opened):
    """Home and End show only one of the two, arrow keys move the line."""
    tab_to(opened, "Share of")
    opened.keyboard.press("Home")
    ground_truth = screenshot(opened)
    opened.keyboard.press("End")
    prediction = screenshot(opened)
    assert np.abs(ground_truth - prediction).mean() > 5
    for _ in range(50):
        opened.keyboard.press("ArrowLeft")
    half, middle = screenshot(opened), prediction.shape[1] // 2
    left, right = np.s_[:, : middle - 20], np.s_[:, middle + 20 :]
    assert np.abs(half[left] - prediction[left]).mean() < 1
    assert np.abs(half[right] - ground_truth[right]).mean() < 1


def test_the_buttons_change_all_images(opened):
    tab_to(opened, "Half and half")
    opened.keyboard.press("Shift+Tab")
    opened.keyboard.press("Enter")
    assert {wipe.input_value() for wipe in opened.locator(".wipe").all()} == {"100"}
    prediction = screenshot(opened)
    opened.keyboard.press("Tab")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Space")
    assert {wipe.input_value() for wipe in opened.locator(".wipe").all()} == {"0"}
    assert np.abs(screenshot(opened) - prediction).mean() > 5


def test_zero_opacity_shows_the_photo(opened):
    tab_to(opened, "Opacity")
    opened.keyboard.press("Home")
    opened.get_by_role("button", name="Ground truth", exact=True).last.click()
    ground_truth = screenshot(opened)
    opened.get_by_role("button", name="Prediction", exact=True).last.click()
    edge = 20  # the line's handle
    assert np.abs(screenshot(opened) - ground_truth)[:, edge:-edge].max() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_no_horizontal_overflow(opened, width, scheme):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
