"""How a process that trains is asked to stop."""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopRequest:
    """Turns the first interrupt into a request to stop at a step that suits all workers; the second ends at once.

    A context manager, at whose end signals are handled as before.
    """

    def __init__(self) -> None:
        self._interrupted = False

    def requested(self) -> bool:
        """Return whether somebody asked to stop, or the process that started this one has ended."""
        return self._interrupted or orphaned()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True

    def __enter__(self) -> None:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)  # the process that started us blocked them

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def orphaned() -> bool:
    """Return whether the process that started this worker has ended."""
    return os.environ.get("SWARMSTEP_LAUNCHER", str(os.getppid())) != str(os.getppid())
