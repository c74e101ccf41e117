"""Tasks in the background of real processes: one after the other, and none is left when the program ends."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from swarmstep.comm.base import Pending, T

LAST_WAIT = 10.0  # seconds for what is under way when the program ends


class BackgroundTask(Pending[T]):
    """A task in a thread of its own, which does not keep the program from ending.

    Args:
        task: what to run.
        before: tasks to wait for first, so that those of one group run in the same order on all ranks.
    """

    def __init__(self, task: Callable[[], T], before: Sequence[BackgroundTask[Any]]) -> None:
        self._task = task
        self._before = list(before)
        self._returned: list[T] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="swarmstep-round", daemon=True)
        _running.add(self)
        self._thread.start()

    def _run(self) -> None:
        try:
            while self._before:
                self._before.pop().wait()
            self._returned.append(self._task())
        except BaseException as error:
            self._error = error
        _running.discard(self)

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the task has ended, well or not (None: its own waits have their limits)."""
        self._thread.join(seconds if seconds is None else max(0.0, seconds))

    def result(self) -> T:
        self.wait()
        if self._error:
            raise self._error
        return self._returned[0]


_running: set[BackgroundTask[Any]] = set()


def settle_all() -> None:
    """Let what is under way end: torch aborts a program that ends while a thread is inside a collective."""
    deadline = time.monotonic() + LAST_WAIT
    for task in list(_running):
        task.wait(deadline - time.monotonic())


atexit.register(settle_all)
