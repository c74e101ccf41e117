"""What this process waits for: noted by whoever waits for others, and told where that takes long.

Each place that waits for another process does so in a `Wait`. A thread looks at those that are open every second:
one that has lasted LONG seconds is told to whoever listens, and stands in a file, which the process that started
this one reads (`swarmstep.elastic.stall`). At STACKS a process writes down where each of its threads is, whatever
it does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import NamedTuple

LONG = 5.0  # seconds
PERIOD = 1.0  # seconds between two looks
STACKS = signal.SIGUSR2  # asks for the stacks; SIGUSR1 asks to stop (launch.stopping)


class Open(NamedTuple):
    """A wait that is not over: what for, and since when, as of `time.monotonic`."""

    what: str
    since: float


class Wait:
    """A wait for others; a context manager.

    Args:
        what: for what, and for whom.

    Attributes:
        what: as the argument; whoever waits may change it meanwhile.
    """

    __slots__ = ("_since", "what")

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> Wait:
        self._since = time.monotonic()
        _open[id(self)] = self
        return self

    def __exit__(self, *exception: object) -> None:
        del _open[id(self)]

    @property
    def open(self) -> Open:
        """This wait, as it is now."""
        return Open(self.what, self._since)


_open: dict[int, Wait] = {}  # those of all threads, in the order in which they began
_listeners: list[Callable[[Open], None]] = []


def waits(seconds: float) -> list[Open]:
    """Return what this process has been waiting for at least so long: the whole before its parts."""
    before = time.monotonic() - seconds
    return [wait.open for wait in list(_open.values()) if wait.open.since <= before]


@contextlib.contextmanager
def listening(listener: Callable[[Open], None]) -> Generator[None]:
    """Have `listener` called, in another thread, with each wait that lasts LONG seconds, within the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def report(name: str) -> None:
    """From now on tell in NAME.waits what this process waits for, and in NAME.stacks on request where it is.

    Args:
        name: a path without a suffix.
    """
    stacks = os.open(f"{name}.stacks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    faulthandler.register(STACKS, stacks)
    threading.Thread(target=_look, args=(f"{name}.waits",), name="swarmstep-waiting", daemon=True).start()


def reported(file: Path) -> list[Open]:
    """Return what a process says in its file that it waits for; nothing where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return [Open(*row) for row in json.loads(file.read_text())]
    return []


def _look(file: str) -> None:
    told: list[Open] = []
    while True:
        time.sleep(PERIOD)
        found = waits(LONG)
        for wait in found:
            for listener in () if wait in told else [*_listeners]:
                listener(wait)
        if found != told:
            told = found
            with contextlib.suppress(OSError):  # the disk is full
                with open(f"{file}.partial", "w") as partial:
                    json.dump(found, partial)
                os.replace(partial.name, file)
