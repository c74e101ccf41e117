"""The report's page in a real browser: Chromium, spoken to over its DevTools protocol."""

from __future__ import annotations

import base64
import dataclasses
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from made_results import made_results
from swarmstep.compare.analysis import analyse
from swarmstep.report import page

NASTY = "</script><script>window.hurt = 1</script><img src=http://192.0.2.1/x onerror='window.hurt = 2'>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="no browser: chromium, chromium-browser or google-chrome on PATH"
)


class Browser:
    """One tab of a headless Chromium.

    Args:
        folder: of its own, for the browser's files.
    """

    def __init__(self, folder: Path) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        # Chromium reads commands from 3 and writes to 4: numbers from 10 on are not in the way of these.
        passed = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs_in, theirs_out)]
        options = [
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--remote-debugging-pipe", f"--user-data-dir={folder}"),
        ]
        command = f'exec "$@" 3<&{passed[0]} 4>&{passed[1]}'
        with (folder / "output").open("wb") as output:
            self.process = subprocess.Popen(
                ["bash", "-c", command, "bash", str(CHROMIUM), *options],
                pass_fds=passed,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        for end in (*passed, theirs_in, theirs_out):
            os.close(end)
        self._out, self._in, self._left = ours_out, ours_in, b""
        self._number, self._session = 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the answer to one command; what happens meanwhile goes to `events`."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            message = self._receive()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def _receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + 60
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser has fallen silent"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser has gone"
            self._left += read
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int, dark: bool = False) -> None:
        """Load a file in a window of this width."""
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=file.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page, once all that was started has been painted."""
        painted = "await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));"
        wrapped = f"(async () => {{ const value = ({script}); {painted} return value; }})()"
        result = self.call("Runtime.evaluate", expression=wrapped, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key)

    def screenshot(self, whole: bool = False) -> bytes:
        """Return what is to be seen, as PNG."""
        result = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(result["data"])

    def complaints(self) -> list[Any]:
        """Return the errors since the page was opened, and the requests besides that for the page."""
        complaints: list[Any] = []
        for event in self.events:
            about = event.get("params", {})
            if event["method"] == "Network.requestWillBeSent" and about["request"]["url"][:5] != "file:":
                complaints.append(about["request"]["url"])
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                complaints.append(about)
            if event["method"] == "Runtime.consoleAPICalled":
                complaints.append(about)
        requests = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return complaints + requests[1:]

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)
        os.close(self._in)
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("page") / "report.html"
    sections = [*analyse([made_results()]), *analyse([made_results(real=True)])]
    made.write_text(page(sections, f"How often? {NASTY}"))
    return made


def test_the_plots_are_drawn_without_a_complaint_or_a_request(browser: Browser, file: Path) -> None:
    browser.open(file, 1200)
    figures = browser.run("document.querySelectorAll('figure').length")
    assert figures > 6
    drawn = "[...document.querySelectorAll('figure')].map((f) => f.querySelectorAll('.canvas path.curve').length)"
    assert min(browser.run(drawn)) >= 1
    broken = (
        "[...document.querySelectorAll('path')].filter((p) => /NaN|undefined|Infinity/.test(p.outerHTML)).length"
    )
    assert browser.run(broken) == 0
    assert browser.run("typeof window.hurt") == "undefined"
    assert browser.complaints() == []


def test_complaints_are_heard(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "bad.html"
    file.write_text(
        "<script>console.error('one')</script><script>two()</script><img src='http://127.0.0.1:9/three'>"
    )
    browser.open(file, 400)
    heard = json.dumps(browser.complaints())
    assert "one" in heard
    assert "two is not defined" in heard
    assert "127.0.0.1:9/three" in heard


def test_what_a_method_is_called_cannot_hurt(browser: Browser, tmp_path: Path) -> None:
    sections = analyse([made_results(real=True)])
    curves = tuple(dataclasses.replace(curve, method=NASTY) for curve in sections[0].curves[:1])
    rows = tuple(dataclasses.replace(row, method=NASTY) for row in sections[0].rows[:1])
    made = dataclasses.replace(sections[0], title=NASTY, command=NASTY, rows=rows, curves=curves)
    file = tmp_path / "nasty.html"
    file.write_text(page([made], NASTY))
    browser.open(file, 1200)
    assert NASTY in browser.run("document.querySelector('.legend').textContent")
    assert browser.run("[typeof window.hurt, document.images.length]") == ["undefined", 0]
    assert browser.complaints() == []


def test_axes_curves_and_values(browser: Browser, file: Path) -> None:
    browser.open(file, 1200)
    shape = "document.querySelector('.canvas path.curve').getAttribute('d')"
    seen = {browser.run(shape)}
    for choice in ("bytes", "seconds", "loss", "all"):
        browser.run(f"document.querySelector('input[value={choice}]').click()")
        seen.add(browser.run(shape))
    assert len(seen) == 5, "each choice draws something else"

    count = "document.querySelectorAll('figure:first-of-type .canvas path.curve').length"
    before = browser.run(count)
    browser.run("document.querySelector('.legend button[aria-pressed=true]').focus()")
    browser.press(" ")
    assert browser.run(count) == before - 1
    assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "false"

    browser.run("document.querySelector('.canvas svg').focus()")
    browser.press("ArrowRight")
    first = browser.run("document.querySelector('.tip').textContent")
    browser.press("ArrowLeft")
    second = browser.run("document.querySelector('.tip').textContent")
    assert "test loss: " in first
    assert "steps: " in second
    assert first != second
    assert browser.complaints() == []


def test_light_and_dark(browser: Browser, file: Path) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    browser.open(file, 1200, dark=True)
    dark = browser.run(paper)
    browser.run("document.getElementById('theme').click()")
    light = browser.run(paper)
    browser.open(file, 1200)
    assert browser.run(paper) == light != dark
    browser.run("document.getElementById('theme').click()")
    assert browser.run(paper) == dark


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_is_wider_than_the_page_and_something_is_to_be_seen(
    browser: Browser, file: Path, width: int
) -> None:
    browser.open(file, width)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    # The window less its scroll bar.
    assert browser.run("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    browser.run("document.querySelector('figure').scrollIntoView()")
    assert len(set(rows_of(browser.screenshot()))) > 100, "a blank page has equal rows"


# What is cut off: boxes that scroll with no mark at that edge, boxes that hide the rest, texts outside of a plot.
CUT_OFF = """
[...document.querySelectorAll("body *")].filter((one) => {
  const style = getComputedStyle(one);
  if (one.matches("caption, .skip, fieldset input, svg") || !one.getClientRects().length) return false;
  if (one.ownerSVGElement) {
    const [own, plot] = [one.getBoundingClientRect(), one.ownerSVGElement.getBoundingClientRect()];
    return one.localName === "text" && (own.left < plot.left - 1 || own.right > plot.right + 1);
  }
  if (one.scrollWidth <= one.clientWidth + 1 || style.overflowX === "visible") return false;
  const marked = (edge) => getComputedStyle(one.parentElement, edge).opacity === "1";
  const [left, right] = [one.scrollLeft > 1, one.scrollLeft + one.clientWidth < one.scrollWidth - 1];
  return style.overflowX !== "auto" || marked("::before") !== left || marked("::after") !== right;
}).map((one) => one.outerHTML.slice(0, 200))
"""


@pytest.mark.parametrize("width", [390, 1400])
def test_nothing_is_cut_off_without_a_mark(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width)
    browser.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    scrolling = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert browser.run(f"{scrolling}.length") > 0
    for place in (0, 20, 1e6):  # the left end, on the way, the right end
        browser.run(f"{scrolling}.forEach((one) => {{ one.scrollLeft = {place}; }})")
        assert browser.run(CUT_OFF) == []
    browser.run("document.querySelector('.wide').className = 'wide'")
    assert len(browser.run(CUT_OFF)) == 1, "a missing mark is found"


def rows_of(png: bytes) -> list[bytes]:
    """Return the rows of pixels of a PNG, each as filtered."""
    width, height = int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
    data, place = b"", 8
    while place < len(png):
        size = int.from_bytes(png[place : place + 4], "big")
        data += png[place + 8 : place + 8 + size] if png[place + 4 : place + 8] == b"IDAT" else b""
        place += size + 12
    pixels = zlib.decompress(data)
    size = len(pixels) // height
    assert size > 3 * width
    return [pixels[i : i + size] for i in range(0, len(pixels), size)]
