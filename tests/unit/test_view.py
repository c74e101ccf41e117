"""What a person sees: a live table on a terminal, plain lines elsewhere, and nothing that breaks a run."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import pty
import re
import sys
import threading

import pytest

from swarmstep.console import in_bytes
from swarmstep.train.progress import Lines, LiveView, Progress, choose_view, describe

LOOK = Progress(30, 120, [0.5, math.nan, math.inf], 7, 1_234_567, {"test_accuracy": 0.91})


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (27_040, "27.0 kB"),
        (1.5e6, "1.5 MB"),
        (2e9, "2.0 GB"),
        (3e13, "30000.0 GB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert in_bytes(count) == text


def test_a_line() -> None:
    expected = "step 30/120: loss 0.500 not finite not finite, test_accuracy 0.9100, 7 rounds, 1.2 MB sent"
    assert describe(LOOK) == expected
    doubtful = dataclasses.replace(LOOK, distrusted=["rank 3 since step 48: why"])
    assert describe(doubtful) == f"{expected}, distrusted: rank 3 since step 48: why"
    many = Progress(1, 2, [1.0] * 17, 0, 0, {})
    assert "1.000 and 9 more, 0 rounds" in describe(many)


def test_lines_now_and_then_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    view = Lines(seconds=3600)
    for step in (10, 20, 120):
        view.show(Progress(step, 120, [0.5], 0, 0, {}))
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"step 120/120: loss 0.500, 0 rounds, 0 B sent, 0 s left\n", err)
    view = Lines(seconds=0)
    for step in (10, 20):
        view.show(Progress(step, 120, [0.5], 0, 0, {}))
    assert capsys.readouterr().err.count("\n") == 2


class Broken(io.StringIO):
    def write(self, _: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_left_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Broken())
    Lines(seconds=0).show(LOOK)


def test_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(choose_view("t"), Lines)  # pytest's standard error is no terminal
    monkeypatch.setattr(sys, "stderr", None)  # closed
    assert isinstance(choose_view("t"), Lines)


class Terminal:
    """A pseudo-terminal in place of standard error; `text` is what was written to it, after `close`."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115 (closed in `close`)
        self.text = ""
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        content = b""
        try:
            while block := os.read(self._master, 4096):
                content += block
        except OSError:  # the other end was closed
            pass
        self.text = content.decode()

    def close(self) -> None:
        self.stream.close()
        self._thread.join()
        os.close(self._master)


@pytest.mark.parametrize("title", ["mnist pso-ps", "my[bold]file.py:x pso-ps", "odd[/x] local-sgd"])
def test_the_live_view_on_a_terminal(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    view = choose_view(title)
    assert isinstance(view, LiveView)
    view.show(LOOK)
    view.show(Progress(120, 120, [0.25, 0.5, 0.75], 15, 2_000_000, {}))
    view.close()
    terminal.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.text)
    assert title in shown
    assert "starting" in shown
    assert re.search(r"120 of 120, \S+ steps a second, 0 s left", shown)
    assert "\u2581\u2581" in shown, "the mean of what is finite stays at 0.5"
    assert "stopping" not in shown
    assert "15, 2.0 MB sent by this worker" in shown
    assert "0.250 0.500 0.750" in shown
    assert "\x1b[?25l" in terminal.text  # the cursor is hidden,
    assert terminal.text.rstrip().endswith("\x1b[?25h")  # and there again at the end


def test_the_live_view_says_that_it_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setenv("TERM", "xterm-256color")
    asked: list[bool] = []
    view = choose_view("mnist pso-ps", lambda: bool(asked))
    view.show(LOOK)
    asked.append(True)  # seen when it is drawn again, before the next look
    view.close()
    terminal.close()
    assert "stopping" in terminal.text.rpartition("starting")[2]
