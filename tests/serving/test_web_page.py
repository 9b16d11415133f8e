"""The page of mvitv2-det serve in a real browser, which is told to ask this machine alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import ROOT
from small_detector import save_detector

pytestmark = pytest.mark.long

# Chromium's own connections, which would be taken for the page's.
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
WAIT = 120_000  # milliseconds


@contextmanager
def served(detector):
    """Runs the command; yields its address, and sees that Ctrl-C ends it well."""
    command = [sys.executable, "-m", "mvitv2_det", "serve", "--device", "cpu"]
    command += ["--config", detector.config, "--weights", detector.weights]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    ) as server:
        try:
            line = server.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+/", line)
            assert found, line + server.stderr.read()
            yield found[0]
            server.send_signal(signal.SIGINT)
            _, errors = server.communicate(timeout=60)
            assert server.returncode == 0 and "Traceback" not in errors, errors
        finally:
            server.kill()


def photograph(file: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels.repeat(20, 0).repeat(20, 1)).save(file)
    return file


def test_a_picture_is_dropped_and_looked_at(tmp_path):
    pytest.importorskip("gradio")
    sync = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium")
    photo = photograph(tmp_path / "photo.jpg")
    broken, huge = tmp_path / "broken.jpg", tmp_path / "huge.jpg"
    broken.write_bytes(photo.read_bytes()[:300])
    huge.write_bytes(bytes(65 * 2**20))
    asked, said = [], []
    detector = save_detector(tmp_path)
    with sync.sync_playwright() as playwright, served(detector) as address:
        browser = playwright.chromium.launch(executable_path=chromium, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 1100})
        page.set_default_timeout(WAIT)
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message) if message.type == "error" else 0)
        page.goto(address)
        found = page.locator("#found textarea")
        shot = Shots(page)

        def upload(file):
            if clear := page.locator("#upload button[aria-label='Clear']").all():
                clear[0].click()
                sync.expect(found).to_have_value("Drop a picture to begin.")
            page.locator("#upload input[type=file]").set_input_files(file)

        sync.expect(found).to_have_value("Drop a picture to begin.")
        shot("start")
        # Low, so that something is found.
        set_threshold(page, "0.05")
        upload(photo)
        picture = page.locator("#picture img")
        sync.expect(picture).to_be_visible()
        sync.expect(found).to_have_value(re.compile(r"^\d+ × class"))
        shot("instances")
        first = picture.get_attribute("src")
        set_threshold(page, "1")
        sync.expect(found).to_have_value(re.compile(r"^no instances; \d+ score less"))
        sync.expect(picture).not_to_have_attribute("src", first)
        picture.click()  # in the middle of 240×320 pixels
        sync.expect(page.locator("#query")).to_have_text(re.compile("query at y 1[12]., x 1[56]."))
        attention = page.locator("#attention img")
        sync.expect(attention).to_be_visible()
        shot("attention")
        upload(broken)
        sync.expect(found).to_have_value(re.compile("^cannot read image broken.jpg: "))
        sync.expect(picture).to_have_count(0)
        sync.expect(attention).to_have_count(0)
        shot("broken")
        upload(huge)
        sync.expect(page.get_by_text("exceed the maximum allowed size of 64")).to_be_visible()
        shot("huge")
        assert "Traceback" not in page.content()
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and not elsewhere
    assert not [message.text for message in said if "413" not in message.text]


def set_threshold(page, value):
    number = page.locator("#score input[type=number]")
    number.fill(value)
    number.press("Enter")


class Shots:
    """Screenshots for people, where MVITV2_DET_SHOTS names a folder."""

    def __init__(self, page):
        self._page, self._folder = page, os.environ.get("MVITV2_DET_SHOTS")

    def __call__(self, name):
        if self._folder:
            self._page.screenshot(path=Path(self._folder, f"{name}.png"), full_page=True)
