"""A browser: the system's Chromium or Chrome, driven by Playwright (requirements-browser.txt)."""

import shutil

import pytest


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("neither Chromium nor Chrome is installed")
    with playwright.sync_playwright() as driver:
        # Chromium's own sandbox refuses to run as root, as in containers.
        launched = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser):
    """An empty page, which must have had no error when the test ends."""
    opened, errors = browser.new_page(), []
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("requestfailed", lambda request: errors.append(request.url))
    yield opened
    opened.close()
    assert errors == []
