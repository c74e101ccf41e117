"""What the workers of a supervisor wait for, said where it takes long, with the stacks of all of them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from swarmstep import waiting
from swarmstep.console import say

FIRST = 30.0  # seconds that a wait lasts before it is said; from then on, twice as many
PERIOD = 1.0  # seconds between two looks
WRITING = 1.0  # seconds that workers have to write down their stacks


class StallWatch:
    """Looks what workers wait for, and tells it where it takes long, or on request.

    Args:
        errors: the folder of the workers' own files.
        folder: of the run, to whose stacks.txt the stacks are added (None: they are said).
        send_signal: called with a worker's name and the number of a signal.

    Attributes:
        requested: somebody wants it to be told now.
    """

    def __init__(self, errors: Path, folder: Path | None, send_signal: Callable[[str, int], object]) -> None:
        self._errors, self._folder, self._send_signal = errors, folder, send_signal
        self.requested = False
        self._limit, self._next = FIRST, 0.0
        self._asked: list[str] = []  # whose stacks are being written
        self._written = 0.0  # when they are to be there

    def look(self, workers: Mapping[int, str], over: float) -> None:
        """Look at the workers once in a while; to be called again and again.

        Args:
            workers: that live, by their slots.
            over: since when they should have ended, by `time.monotonic` (infinity: they should not).
        """
        now = time.monotonic()
        if self._asked and now >= self._written:
            self._collect()
        if now < self._next and not self.requested:
            return
        self._next = now + PERIOD
        since = [over] if workers else []
        since += [wait.since for name in workers.values() for wait in self._waits(name)]
        longest = max((now - when for when in since), default=0.0)
        if longest >= self._limit or self.requested:
            self._limit, self.requested = max(self._limit, 2.0 * longest), False
            self._tell(workers)

    def _tell(self, workers: Mapping[int, str]) -> None:
        """Say what these workers wait for; have them write down where they are, which `look` collects."""
        now = time.monotonic()
        for name in workers.values():
            waits = [f"{wait.what} ({now - wait.since:.0f} s)" for wait in self._waits(name)]
            say(f"worker {name} waits for {', in it for '.join(waits) or 'nobody'}")
            self._send_signal(name, waiting.STACKS)
        self._asked, self._written = [*workers.values()], now + WRITING

    def _waits(self, name: str) -> list[waiting.Open]:
        return waiting.reported(self._errors / f"{name}.waits")

    def _collect(self) -> None:
        """Put together what the workers have written."""
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n\n"
        for name in self._asked:
            file = self._errors / f"{name}.stacks"
            with contextlib.suppress(OSError):
                text += f"worker {name}\n{file.read_text(errors='replace')}\n"
                os.truncate(file, 0)  # the worker appends to it
        self._asked = []
        if self._folder is None:
            say(text)
            return
        file = self._folder / "stacks.txt"
        with contextlib.suppress(OSError), file.open("a") as out:  # the disk is full
            out.write(text)
            say(f"where each worker is: {file}")
