"""What a person sees while a run goes on: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swarmstep.console import in_bytes
from swarmstep.train.work_done import WorkDone, work_table

SHOWN = 8  # workers
BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"  # of a sparkline, the lowest first

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live


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
        self._clock.look(progress)
        left = self._clock.left(progress)
        if time.monotonic() - self._last >= self._seconds or progress.step == progress.steps:
            self._last = time.monotonic()
            with contextlib.suppress(OSError):  # nobody reads it any more
                print(f"{describe(progress)}, {left} left", file=sys.stderr, flush=True)


class LiveView(View):
    """A table that is redrawn in place.

    Args:
        title: its first line.
        stopping: returns whether the run is about to stop, because somebody asked it to.
    """

    def __init__(self, title: str, stopping: Callable[[], bool] = lambda: False) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title, self._stopping = title, stopping
        self._clock = _Clock()
        self._progress: Progress | None = None
        self._means = list[float]()
        self._live: Live = Live(
            console=Console(stderr=True),
            refresh_per_second=4,
            get_renderable=self._table,
            vertical_overflow="crop",
        )
        self._live.start(refresh=True)

    def show(self, progress: Progress) -> None:
        self._clock.look(progress)
        if self._progress is None or progress.step > self._progress.step:
            self._means.append(_mean(progress.losses))
        self._progress = progress
        with contextlib.suppress(OSError):  # the terminal was closed
            self._live.refresh()

    def _table(self) -> Group:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress, table = self._progress, Table.grid(padding=(0, 2))
        view = Group(Text(self._title, style="bold"), table)
        if progress is None:
            table.add_row("starting")
            return view
        speed = f", {self._clock.speed:.3g} steps a second" if self._clock.speed else ""
        table.add_row("step", f"{progress.step} of {progress.steps}{speed}, {self._clock.left(progress)} left")
        table.add_row("", ProgressBar(total=progress.steps, completed=progress.step, width=50))
        table.add_row("rounds", f"{progress.rounds}, {in_bytes(progress.bytes_sent)} sent by this worker")
        table.add_row("loss", _losses(progress.losses))
        table.add_row("", sparkline(self._means))
        for name, score in known(progress.scores).items():
            table.add_row(name, f"{score:.4f}")
        for left_out in progress.distrusted:
            table.add_row("distrusted", Text(left_out, style="yellow"))
        if progress.by_worker:
            workers = Table.grid(padding=(0, 2))
            for line in work_table(progress.by_worker)[: 1 + SHOWN]:
                workers.add_row(*line)
            table.add_row("", workers)
        if self._stopping() and progress.step < progress.steps:
            table.add_row("stopping", Text("all workers, at the same step", style="yellow"))
        return view

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()


class _Clock:
    """Estimates the speed and the time left from the looks since the first one."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None
        self.speed = 0.0  # steps a second; 0: not known yet

    def look(self, progress: Progress) -> None:
        now = time.monotonic()
        if self._start is None or progress.step < self._start[1]:
            self._start = (now, progress.step)
        began, first = self._start
        self.speed = (progress.step - first) / (now - began) if now > began else 0.0

    def left(self, progress: Progress) -> str:
        rest = progress.steps - progress.step
        return f"{rest / self.speed:.0f} s" if self.speed else "?" if rest else "0 s"


def sparkline(values: Sequence[float], width: int = 50) -> str:
    """Return a line of at most `width` blocks, one for each value, or for the mean of several that follow."""
    size = -(-len(values) // width) or 1
    parts = [values[start : start + size] for start in range(0, len(values), size)]
    means = [_mean(part) for part in parts]
    known = [mean for mean in means if math.isfinite(mean)]
    if not known:
        return ""
    low, high = min(known), max(known)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


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


def _losses(losses: list[float]) -> str:
    shown = [f"{loss:.3f}" if math.isfinite(loss) else "not finite" for loss in losses[:SHOWN]]
    return " ".join(shown) + (f" and {len(losses) - SHOWN} more" if len(losses) > SHOWN else "")


def choose_view(title: str, stopping: Callable[[], bool] = lambda: False) -> View:
    """Return a live view where standard error is a terminal, else one of plain lines."""
    return LiveView(title, stopping) if sys.stderr and sys.stderr.isatty() else Lines()
