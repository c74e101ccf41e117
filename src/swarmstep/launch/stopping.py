"""How a run is asked to stop, and which signals mean that.

Each of SIGNALS is a request to stop with a checkpoint, to whichever process of a run it is sent, however often: a
scheduler sends it to all processes at once, a wrapper sends it twice. Only Ctrl-C again, later than ONE_REQUEST
seconds after the first signal, ends a run at once; the process that started the run decides that, not its workers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # SIGUSR1: from SLURM, before time is up
ONE_REQUEST = 1.0  # seconds within which several signals are one request


@contextlib.contextmanager
def noting_interrupts(
    at_once: Callable[[], None] = lambda: None, *, for_good: bool = False
) -> Generator[list[int]]:
    """Collect requests to stop in the list that is yielded, instead of being interrupted.

    The first signal is noted; after it, only Ctrl-C that is pressed again: two entries mean "end at once". Signals
    are handled as before at the end of the block unless one has come: then this process is about to end, and later
    ones must not change how.

    Args:
        at_once: called, in the signal handler, at each entry after the first.
        for_good: never handle signals as before again.
    """
    interrupts: list[int] = []
    first = 0.0

    def note(number: int, _frame: object) -> None:
        nonlocal first
        now = time.monotonic()
        if not interrupts:
            first = now
            interrupts.append(number)
        elif number == signal.SIGINT and now - first > ONE_REQUEST:
            interrupts.append(number)
            at_once()

    previous = {number: signal.signal(number, note) for number in heard()}
    try:
        yield interrupts
    finally:
        if not (interrupts or for_good):
            for number, handler in previous.items():
                signal.signal(number, handler)


def heard() -> Sequence[signal.Signals]:
    """Return SIGNALS, without SIGHUP where nohup has this process ignore it."""
    return [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


@contextlib.contextmanager
def blocked() -> Generator[None]:
    """Block SIGNALS in this thread: a process that is started within inherits that, and does not hear them.

    One that comes early is delivered once the process is ready for it: when it enters a `StopRequest`.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class StopRequest:
    """Turns signals into a request to stop at a step that suits all workers; a context manager.

    In a process that nobody else watches over, Ctrl-C again raises KeyboardInterrupt. One that is watched is about
    to end when the block ends, and hears no more signals.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._interrupts: list[int] = []
        self._agent = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None  # torchrun

    def requested(self) -> bool:
        """Return whether somebody asked to stop, or the process that started this one has ended."""
        return bool(self._interrupts) or orphaned() or self._agent not in (None, os.getppid())

    def __enter__(self) -> None:
        watched = self._agent is not None or "SWARMSTEP_LAUNCHER" in os.environ
        noting = noting_interrupts(_ignore if watched else _interrupt, for_good=watched)
        self._interrupts = self._stack.enter_context(noting)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the process that started us blocked them

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _interrupt() -> None:
    raise KeyboardInterrupt


def _ignore() -> None:
    pass


def orphaned() -> bool:
    """Return whether the process that started this worker has ended."""
    return os.environ.get("SWARMSTEP_LAUNCHER", str(os.getppid())) != str(os.getppid())
