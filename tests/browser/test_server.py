"""The page of ``tools/serve.py`` in a browser: mouse, keyboard, parallel uploads."""

import re
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from served_model import CLASSES, write_model

from paddleseg_segformer.inference import Predictor

pytest.importorskip("flask", reason="Flask is not installed")
pytest.importorskip("waitress", reason="Waitress is not installed")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
WIDTH, HEIGHT = 96, 64
IMAGE = np.random.default_rng(0).integers(0, 255, [HEIGHT, WIDTH, 3], "uint8")
SEND = """async ([numbers, count]) => {
  const send = async () => {
    const answer = await fetch("api/segment", {method: "POST", body: new Uint8Array(numbers)});
    return [answer.status, await answer.json()];
  };
  return Promise.all(Array.from({length: count}, send));
}"""


def upload(kind="PNG", name="photo.png", **options):
    file = BytesIO()
    Image.fromarray(IMAGE).save(file, kind, **options)
    return {"name": name, "mimeType": f"image/{kind.lower()}", "buffer": file.getvalue()}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def prediction(model_path):
    return Predictor(model_path, device="cpu")(IMAGE)


@pytest.fixture(scope="module")
def address(model_path):
    process = subprocess.Popen(
        [sys.executable, "tools/serve.py", "--model_path", model_path]
        + ["--device", "cpu", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    yield re.search(r"http://\S+", process.stdout.readline())[0]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.fixture
def opened(page, address):
    page.on("filechooser", lambda _: None)  # the dialog may open before a test expects it
    page.goto(address)
    return page


@pytest.fixture
def tab(browser, address):
    """A page without the check for errors: the browser logs HTTP errors to its console."""
    page = browser.new_page()
    page.goto(address)
    yield page
    page.close()


def choose(page, file):
    page.set_input_files("#picker", file)
    page.wait_for_function("name => status.textContent.startsWith(name + ':')", arg=file["name"])


def transfer(page, file):
    """A DataTransfer with a file."""
    make = """([numbers, name, type]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(numbers)], name, {type}));
      return transfer;
    }"""
    return page.evaluate_handle(make, [list(file["buffer"]), file["name"], file["mimeType"]])


def shown_colors(page):
    """The overlay: ``[H, W, 4]``."""
    read = """() => {
      const pen = sheet(colors.width, colors.height);
      pen.drawImage(colors, 0, 0);
      return [...pen.getImageData(0, 0, colors.width, colors.height).data];
    }"""
    return np.array(page.evaluate(read), dtype="uint8").reshape(HEIGHT, WIDTH, 4)


def assert_colors(page, prediction):
    expected = prediction.palette[prediction.label_map]
    np.testing.assert_array_equal(shown_colors(page)[:, :, :3], expected)


def assert_shown(page, prediction):
    np.testing.assert_array_equal(
        shown_colors(page)[:, :, :3], prediction.palette[prediction.label_map]
    )
    shares = prediction.shares()
    assert page.locator("#legend .name").all_inner_texts() == list(shares)
    assert (
        page.locator("#status")
        .inner_text()
        .startswith(f"photo.png: 96 \N{MULTIPLICATION SIGN} 64 pixels, {len(shares)} classes")
    )


def test_a_file_is_chosen(opened, prediction):
    with opened.expect_file_chooser() as chooser:
        opened.get_by_text("Choose an image").click()
    chooser.value.set_files(upload())
    opened.wait_for_selector("#result", state="visible")
    assert_shown(opened, prediction)


def test_a_file_is_dropped(opened, prediction):
    dropped = transfer(opened, upload())
    opened.dispatch_event("#intake", "dragover", {"dataTransfer": dropped})
    assert "over" in opened.locator("body").get_attribute("class")
    opened.dispatch_event("#intake", "drop", {"dataTransfer": dropped})
    opened.wait_for_selector("#result", state="visible")
    assert "over" not in opened.locator("body").get_attribute("class")
    assert_shown(opened, prediction)


def test_an_image_is_pasted(opened, prediction):
    """From the clipboard, where the browser names every image image.png."""
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    copy = """numbers => navigator.clipboard.write([new ClipboardItem(
      {"image/png": new Blob([new Uint8Array(numbers)], {type: "image/png"})})])"""
    opened.evaluate(copy, list(upload()["buffer"]))
    opened.keyboard.press("Control+V")
    opened.wait_for_selector("#result", state="visible")
    np.testing.assert_array_equal(
        shown_colors(opened)[:, :, :3], prediction.palette[prediction.label_map]
    )


def test_pointing_shows_the_class(opened, prediction):
    choose(opened, upload())
    box = opened.locator("#stage").bounding_box()
    for x, y in ((5, 7), (80, 50)):
        opened.mouse.move(
            box["x"] + (x + 0.5) / WIDTH * box["width"],
            box["y"] + (y + 0.5) / HEIGHT * box["height"],
        )
        name = CLASSES[prediction.label_map[y, x]]
        assert opened.locator("#tag").inner_text() == name
        assert opened.locator("#where").inner_text() == f"{name}, at {x}, {y}"
        assert opened.locator("#legend .here .name").inner_text() == name


def test_everything_by_keyboard(opened, prediction):
    opened.keyboard.press("Tab")
    with opened.expect_file_chooser() as chooser:
        opened.keyboard.press("Enter")
    chooser.value.set_files(upload())
    opened.wait_for_selector("#result", state="visible")

    opened.keyboard.press("Tab")
    assert focused(opened) == "stage"
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowDown"):  # from the middle
        opened.keyboard.press(key)
    where = WIDTH // 2 + 2 + 1, HEIGHT // 2 + 2
    name = CLASSES[prediction.label_map[where[::-1]]]
    assert opened.locator("#where").inner_text() == f"{name}, at {where[0]}, {where[1]}"
    for _ in range(60):
        opened.keyboard.press("ArrowLeft")
    assert opened.locator("#where").inner_text().endswith(f", at 0, {where[1]}")

    opened.keyboard.press("Tab")
    assert focused(opened) == "opacity"
    for _ in range(10):
        opened.keyboard.press("ArrowRight")
    assert opened.evaluate("colors.style.opacity") == "0.6"

    opened.keyboard.press("Tab")
    assert focused(opened) == "save"
    opened.keyboard.press("Tab")
    first = CLASSES.index(next(iter(prediction.shares())))
    strong = shown_colors(opened)[:, :, 3] == 255
    np.testing.assert_array_equal(strong, prediction.label_map == first)
    opened.keyboard.press("Enter")  # keeps the class selected
    opened.keyboard.press("Shift+Tab")
    np.testing.assert_array_equal(shown_colors(opened)[:, :, 3] == 255, strong)
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    opened.keyboard.press("Shift+Tab")
    assert (shown_colors(opened)[:, :, 3] == 255).all()


def focused(page):
    return page.evaluate("document.activeElement.id")


def download(page):
    with page.expect_download() as waiting:
        page.click("#save")
    assert waiting.value.suggested_filename == "photo_overlay.png"
    return np.asarray(Image.open(waiting.value.path()).convert("RGB")).astype(int)


def test_the_downloaded_overlay_has_the_sliders_opacity(opened, prediction):
    choose(opened, upload())
    for percent in (0, 30, 100):
        opened.fill("#opacity", str(percent))
        expected = np.asarray(prediction.overlay(percent / 100)).astype(int)
        assert abs(download(opened) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WebP"])
def test_photo_and_overlay_have_the_same_orientation(kind, opened, model_path, tmp_path):
    """With an EXIF orientation, the photo is shown as the model sees it."""
    exif = Image.Exif()
    exif[0x112] = 6
    lossless = {"lossless": True} if kind == "WebP" else {}
    file = upload(kind, exif=exif, **lossless)
    (tmp_path / "photo").write_bytes(file["buffer"])
    seen = Predictor(model_path, device="cpu")(tmp_path / "photo")
    choose(opened, file)
    opened.fill("#opacity", "0")
    assert abs(download(opened) - seen.image.astype(int)).mean() < 2


def test_images_that_the_browser_cannot_show_are_shown_by_the_servers_picture(tab, prediction):
    choose(tab, upload("TIFF"))
    np.testing.assert_array_equal(
        shown_colors(tab)[:, :, :3], prediction.palette[prediction.label_map]
    )
    assert "cannot show the image itself" not in tab.locator("#status").inner_text()
    tab.fill("#opacity", "0")
    # As a JPEG, which keeps of noise only the mean of each block.
    shown, image = (Image.fromarray(x.astype("uint8")).reduce(16) for x in (download(tab), IMAGE))
    assert abs(np.asarray(shown).astype(int) - image).max() < 4


REJECTED = {
    "no image": (b"Milk, bread, eggs", "The file is not an image"),
    "empty": (b"", "The file is empty."),
    "too large": (bytes(20_000_001), "The file is larger than 20 MB."),
    "damaged": (upload()["buffer"][:2000], "The image is damaged"),
}


@pytest.mark.parametrize("case", REJECTED)
def test_errors_are_shown_and_cleared(case, tab, prediction):
    data, words = REJECTED[case]
    tab.set_input_files("#picker", {**upload(), "buffer": data})
    tab.wait_for_selector("#status.bad")
    assert tab.get_by_role("status").inner_text().startswith(words)
    choose(tab, upload())
    assert "bad" not in tab.locator("#status").get_attribute("class")
    assert_shown(tab, prediction)


def test_requests_to_a_busy_server_are_retried(tab):
    errors = [{"status": 503, "headers": {"Retry-After": "1"}, "json": {"error": "Too busy."}}]

    def answer(route):
        route.fulfill(**errors.pop()) if errors else route.continue_()

    tab.route("**/api/segment", answer)
    tab.set_input_files("#picker", upload())
    tab.get_by_text("Too busy. Trying again in 1 s.").wait_for()
    tab.wait_for_selector("#result", state="visible")


def test_the_last_of_two_images_is_shown(tab):
    held = []
    tab.route("**/api/segment", lambda route: route.continue_() if held else held.append(route))
    tab.set_input_files("#picker", upload(name="first.png"))
    while not held:
        tab.wait_for_timeout(20)
    choose(tab, upload(name="second.png"))
    held[0].continue_()
    tab.wait_for_timeout(500)
    assert tab.locator("#status").inner_text().startswith("second.png:")
    assert not tab.locator("body.busy").count()


def test_an_unreachable_server_is_reported(tab):
    tab.route("**/api/segment", lambda route: route.abort())
    tab.set_input_files("#picker", upload())
    tab.get_by_text("The server cannot be reached").wait_for()


def test_fifty_uploads_at_once(tab):
    answers = tab.evaluate(SEND, [list(upload()["buffer"]), 50])
    expected = tab.evaluate(SEND, [list(upload()["buffer"]), 1])[0][1]["label_map"]
    assert len(answers) == 50 and any(status == 200 for status, _ in answers)
    for status, answer in answers:
        assert status in (200, 503)
        assert answer["label_map"] == expected if status == 200 else answer["error"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1200])
def test_page_fits_its_window(width, scheme, opened):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 800})
    choose(opened, upload())
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (max(map(int, re.findall(r"\d+", background))) < 128) == (scheme == "dark")
