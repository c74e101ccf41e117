"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarmstep.train.work_done import WorkDone, work_table

SHOWN = 8  # workers

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table


@dataclass
class Progress:
    """What a view shows."""

    step: int
    steps: int
    losses: list[float]  # each worker's mean training loss since the last look
    rounds: int
    bytes_sent: int  # by this worker
    scores: dict[str, float]
    distrusted: list[str] = field(default_factory=list[str])  # who, since when and why, in words
    by_worker: list[WorkDone] = field(default_factory=list[WorkDone])


class View:
    """Shows nothing: for tests, other ranks, and as a base."""

    def show(self, progress: Progress) -> None:
        """Take note of how far the run is."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class Lines(View):
    """A line now and then: at most one each `seconds`, and the last."""

    def __init__(self, seconds: float = 5.0) -> None:
        self._seconds = seconds
        self._clock = _Clock()
        self._last = time.monotonic()

    def show(self, progress: Progress) -> None:
        left = self._clock.left(progress)
        if time.monotonic() - self._last >= self._seconds or progress.step == progress.steps:
            self._last = time.monotonic()
            with contextlib.suppress(OSError):  # nobody reads it any more
                print(f"{describe(progress)}, {left} left", file=sys.stderr, flush=True)


class LiveView(View):
    """A table that is redrawn in place."""

    def __init__(self, title: str) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        self._clock = _Clock()
        self._live: Live = Live(console=Console(stderr=True), refresh_per_second=4)
        self._live.start()

    def show(self, progress: Progress) -> None:
        with contextlib.suppress(OSError):  # the terminal was closed
            self._live.update(self._table(progress))

    def _table(self, progress: Progress) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.title, table.title_justify = Text(self._title, style="bold"), "left"
        table.add_row("step", f"{progress.step} of {progress.steps}, {self._clock.left(progress)} left")
        table.add_row("", ProgressBar(total=progress.steps, completed=progress.step, width=50))
        table.add_row("rounds", f"{progress.rounds}, {in_bytes(progress.bytes_sent)} sent by this worker")
        table.add_row("loss", _losses(progress.losses))
        for name, score in known(progress.scores).items():
            table.add_row(name, f"{score:.4f}")
        for left_out in progress.distrusted:
            table.add_row("distrusted", Text(left_out, style="yellow"))
        if progress.by_worker:
            workers = Table.grid(padding=(0, 2))
            for line in work_table(progress.by_worker)[: 1 + SHOWN]:
                workers.add_row(*line)
            table.add_row("", workers)
        return table

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()


class _Clock:
    """Estimates the time left from the time since the first look."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def left(self, progress: Progress) -> str:
        now = time.monotonic()
        if self._start is None:
            self._start = (now, progress.step)
        began, first = self._start
        done = progress.step - first
        if not done:
            return "?"
        return f"{(now - began) / done * (progress.steps - progress.step):.0f} s"


def describe(progress: Progress) -> str:
    """Return where a run is, in one line."""
    scores = "".join(f", {name} {score:.4f}" for name, score in known(progress.scores).items())
    left_out = "".join(f", distrusted: {words}" for words in progress.distrusted)
    return (
        f"step {progress.step}/{progress.steps}: loss {_losses(progress.losses)}{scores}, "
        f"{progress.rounds} rounds, {in_bytes(progress.bytes_sent)} sent{left_out}"
    )


def known(scores: Mapping[str, float]) -> dict[str, float]:
    """Return the scores that have a value: a workload may have no accuracy."""
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def describe_distrust(worker: Mapping[str, Any]) -> str:
    """Return which worker is left out, since when and why; `worker` has the fields of a `Distrust`."""
    return f"rank {worker['rank']} since step {worker['since']}: {worker['why']}"


def in_bytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"


def _losses(losses: list[float]) -> str:
    shown = [f"{loss:.3f}" if math.isfinite(loss) else "not finite" for loss in losses[:SHOWN]]
    return " ".join(shown) + (f" and {len(losses) - SHOWN} more" if len(losses) > SHOWN else "")


def choose_view(title: str) -> View:
    """Return a live view where standard error is a terminal, else one of plain lines."""
    return LiveView(title) if sys.stderr and sys.stderr.isatty() else Lines()
