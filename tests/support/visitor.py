# SPDX-License-Identifier: Apache-2.0
"""A visitor of the real page: the Space in a process of its own, Chromium driven by Playwright."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPACE = ROOT / "space_app"
_UNWANTED = ("gpu", "quic", "background-networking", "component-update", "sync")
FLAGS = ["--no-first-run", *(f"--disable-{name}" for name in _UNWANTED)]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
WAIT_MS = 15_000
SEVEN = [(0.26, 0.12), (0.74, 0.12), (0.45, 0.9)]


def example_file(name, suffix):
    """One of the page's own examples of that ensemble."""
    return str(sorted((SPACE / "examples" / name).glob(f"*{suffix}"))[1])


def chromium_path():
    """The browser to drive; `EDVIT_CHROMIUM` names another than the first on the path."""
    found = os.environ.get("EDVIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.fail("Chromium is needed: `apt-get install chromium`, or name one in EDVIT_CHROMIUM", pytrace=False)
    return found


@contextmanager
def serving(folder, *, endpoint="http://127.0.0.1:9", space=SPACE):
    """`python app.py` on a free port, as long as the block lasts; its address and the file with what it logs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / "space.log"
    hub = {"HF_ENDPOINT": endpoint, "HF_HOME": str(folder / "hub"), "HF_HUB_OFFLINE": "0"}
    hub |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment = {**os.environ, **hub, "GRADIO_SERVER_PORT": str(port), "EDVIT_NUM_THREADS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment, stdout=out, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}", server, log)
            yield f"http://127.0.0.1:{port}", log
        finally:
            server.terminate()
            server.wait(20)


def _wait_for(address, server, log):
    begin = time.monotonic()
    while time.monotonic() - begin < 60 and server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the Space did not start:\n{log.read_text()}", pytrace=False)


@contextmanager
def browsing(playwright, *flags):
    """A headless browser with a fresh profile; without its sandbox only where root needs that."""
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    browser = playwright.chromium.launch(executable_path=chromium_path(), args=[*FLAGS, *sandbox, *flags])
    try:
        yield browser
    finally:
        browser.close()


class Visitor:
    """One visitor in a browser context of their own, and what the browser complained about."""

    def __init__(self, browser, address, **settings):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        self.context.set_default_timeout(WAIT_MS)
        self.page, self.complaints, self.allowed = self.context.new_page(), [], None
        self.page.on("console", lambda m: self.complain(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complain(str(error)))
        self.page.on("request", lambda request: self._asked(request.url))
        self.page.goto(address)
        self.page.locator(".ed-device").first.wait_for()
        self.page.locator("canvas, #source").first.wait_for()

    def complain(self, text):
        if not (self.allowed and re.search(self.allowed, text)):
            self.complaints.append(text)

    def _asked(self, url):
        if not re.match(r"(data|blob):|http://127\.0\.0\.1[:/]", url):
            self.complaints.append(f"asked another host: {url}")

    def text(self, selector):
        return self.page.locator(selector).inner_text().replace("\xa0", " ")

    def label(self):
        return self.text(".ed-label span")

    def shares(self):
        """What the bars say, by label."""
        rows = self.page.locator(".ed-bars li:not(.more)").all()
        return {row.locator("span").inner_text(): row.locator("b").inner_text().replace("\xa0", " ") for row in rows}

    def wait(self, state):
        """Until the answer is in that state: empty, answered, degraded or refused."""
        self.page.locator(f".ed-answer.ed-{state}").wait_for()

    def choose(self, name):
        chosen = f"input[name=ed-ensemble][value='{name}']"
        self.page.locator(f".ed-choice:has({chosen})").click()
        self.page.locator(f"{chosen}:checked").wait_for(state="attached")
        if name:
            titles = {"digits": "Handwritten digits", "spoken_digits": "Spoken digits", "question_type": "question"}
            self.page.locator("#input .ed-section", has_text=titles[name]).wait_for()

    def example(self, index):
        self.page.locator(f"[data-example='{index}']").click()

    def plug(self, index):
        return self.page.locator(f".ed-plug[data-device='{index}']")

    def draw(self, *strokes):
        """Strokes as lists of points, in shares of the field."""
        self.page.locator("#pad canvas").scroll_into_view_if_needed()
        box = self.page.locator("#pad canvas").bounding_box()
        for stroke in strokes:
            places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            self.page.mouse.move(*places[0])
            self.page.mouse.down()
            for place in places[1:]:
                self.page.mouse.move(*place, steps=8)
            self.page.mouse.up()
