"""A real browser for tests: Chromium, spoken to over its DevTools protocol."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
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
        requests = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return self.errors() + requests[1:]

    def errors(self) -> list[Any]:
        """Return the errors since the page was opened, what it wrote to the console, and requests to a network."""
        complaints: list[Any] = []
        for event in self.events:
            about = event.get("params", {})
            if event["method"] == "Network.requestWillBeSent" and about["request"]["url"][:5] not in (
                "file:",
                "data:",
            ):
                complaints.append(about["request"]["url"])
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                complaints.append(about)
            if event["method"] == "Runtime.consoleAPICalled":
                complaints.append(about)
        return complaints

    def close(self) -> None:
        """End the browser."""
        os.close(self._out)
        os.close(self._in)
        self.process.terminate()
        self.process.wait(30)
