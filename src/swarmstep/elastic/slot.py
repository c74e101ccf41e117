"""A supervisor's place for one worker at a time, which is filled again when that worker dies."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

HEALTHY = 5.0  # seconds that a worker lives for its start to count as a success
PAUSE, LONGEST_PAUSE = 0.1, 30.0  # seconds before a restart, doubled after each failed start in a row
HOPELESS = 5  # failed starts in a row, of every slot, after which the run has failed


@dataclass
class Slot:
    """One slot; its workers are named SLOT.INCARNATION.

    Attributes:
        number: of the slot.
        incarnation: of the latest worker, from 0.
        pid: of the worker that runs (None: none does).
        failures: starts in a row whose worker died within HEALTHY seconds.
    """

    number: int
    incarnation: int = -1
    pid: int | None = None
    failures: int = 0
    _started: float = 0.0
    _lived: float = 0.0  # seconds, of the last worker that has ended
    _due: float = 0.0  # when the next worker starts; infinity: never

    @property
    def worker(self) -> str:
        """The name of the latest worker."""
        return f"{self.number}.{self.incarnation}"

    @property
    def wait(self) -> float:
        """Seconds until the next worker is to start; infinity if none is, or one runs."""
        return math.inf if self.pid is not None else self._due - time.monotonic()

    @property
    def closed(self) -> bool:
        """Whether no worker is to start here any more."""
        return self._due == math.inf

    @property
    def hopeless(self) -> bool:
        """Whether its workers die again and again soon after their start."""
        return self.failures >= HOPELESS

    def start(self, pid: int) -> None:
        """Note the process of a worker that has been started."""
        self.pid, self._started = pid, time.monotonic()

    def end(self) -> None:
        """Note that its process has ended."""
        self.pid, self._lived = None, time.monotonic() - self._started

    def restart_later(self) -> None:
        """Start another worker: at once if the last one lived for long, else after a pause that grows."""
        self.failures = self.failures + 1 if self._lived < HEALTHY else 0
        pause = min(LONGEST_PAUSE, PAUSE * 2.0 ** (self.failures - 1)) if self.failures else 0.0
        self._due = time.monotonic() + pause

    def close(self) -> None:
        """Start no worker here any more."""
        self._due = math.inf
