"""Signs of life on the store, so that a dead peer can be told from a slow one."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Sequence
from typing import Protocol

PERIOD = 0.5  # seconds between two signs of life


class Store(Protocol):
    """The part of torch's Store that is used here."""

    def add(self, key: str, amount: int, /) -> int: ...
    def get(self, key: str, /) -> bytes: ...
    def set(self, key: str, value: str, /) -> None: ...
    def check(self, keys: list[str], /) -> bool: ...
    def multi_get(self, keys: list[str], /) -> list[bytes]: ...
    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes: ...


class Heartbeat:
    """Beats for this process and watches the beats of all others, in a thread of its own.

    Args:
        store: a connection that nobody else uses.
        name: of this process.
        names: of those to watch, in rank order; this one may be among them.
        period: seconds between two beats.
    """

    def __init__(self, store: Store, name: str, names: Sequence[str], period: float = PERIOD) -> None:
        self._store = store
        self._name = name
        self.period = period
        self._heard = time.monotonic()  # when the store answered last
        self._asked: float | None = None  # when the request was made that the store has not answered yet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swarmstep-heartbeat", daemon=True)
        self._lock = threading.Lock()
        self.error: Exception | None = None  # the store is gone
        self._names, self._flag = list[str](), ""
        self._counts, self._seen = list[bytes](), list[float]()
        self._dead, self._raised = set[str](), False
        self.watch(names)
        store.add(_alive(name), 1)

    def watch(self, names: Sequence[str], flag: str = "") -> None:
        """Watch these from now on, in place of those before; and a counter, for `raised`."""
        now = time.monotonic()
        with self._lock:
            if (list(names), flag) == (self._names, self._flag):
                return
            known = dict(zip(self._names, zip(self._counts, self._seen, strict=True), strict=True))
            pairs = [known.get(name, (b"", now)) for name in names]
            self._names, self._flag = list(names), flag
            self._counts, self._seen = [count for count, _ in pairs], [seen for _, seen in pairs]
            self._dead &= set(names)
            self._raised = False

    def met(self) -> None:
        """Take all who are watched for alive at this moment: they have just been met."""
        now = time.monotonic()
        with self._lock:
            self._heard, self._seen = now, [now] * len(self._names)

    def start(self) -> None:
        """Start watching; everybody's Heartbeat has been made by now."""
        self.met()
        self._thread.start()
        atexit.register(self.stop)  # a thread inside the store must not meet the end of the interpreter

    def _run(self) -> None:
        known: set[str] = set()  # keys that exist: `multi_get` would wait for others
        try:
            while not self._stop.wait(self.period):
                self._asked = time.monotonic()
                self._store.add(_alive(self._name), 1)
                with self._lock:
                    names, flag = self._names, self._flag
                marks = [dead(name) for name in names] + ([flag] if flag else [])
                for key in set(marks) - known:
                    self._store.add(key, 0)
                known |= set(marks)
                keys = [_alive(name) for name in names] + marks
                self._note(names, self._store.multi_get(keys) if keys else [])
        except Exception as error:
            self.error = error

    def _note(self, names: list[str], found: list[bytes]) -> None:
        now = time.monotonic()
        with self._lock:
            self._asked = None
            if names is not self._names:
                return  # others are watched by now, of whom nothing was heard
            self._heard = now
            for place, count in enumerate(found[: len(names)]):
                if count != self._counts[place]:
                    self._counts[place], self._seen[place] = count, now
            marks = [int(mark) > 0 for mark in found[len(names) :]]
            self._dead |= {name for name, mark in zip(names, marks, strict=False) if mark}
            self._raised = len(marks) > len(names) and marks[-1]

    def silent(self, seconds: float) -> list[int]:
        """Return the ranks that had given no sign of life for so long when the store answered last.

        Counted to the last answer, not to now: while this process itself is stopped, or the store is, nothing
        is learnt about the peers.
        """
        with self._lock:
            limit = self._heard - seconds
            return [r for r, seen in enumerate(self._seen) if seen < limit and self._names[r] != self._name]

    def name_of(self, rank: int) -> str:
        """Return the name of a rank."""
        return self._names[rank]

    def dead(self) -> set[str]:
        """Return the names of those of whom somebody who knows has said that they are dead."""
        with self._lock:
            return set(self._dead)

    def raised(self) -> bool:
        """Return whether the counter to watch was above 0 when the store answered last."""
        return self._raised

    def store_silent(self, seconds: float) -> bool:
        """Return whether the store has left a request unanswered for so long."""
        asked = self._asked
        return asked is not None and time.monotonic() - asked > seconds

    def agree_on_lost(self, ranks: list[int]) -> list[int]:
        """Say which ranks are lost; return what the first to say so said, so that all name the same."""
        said = ",".join(map(str, ranks))
        if self.store_silent(4 * self.period):  # it would not answer this either
            return ranks
        try:
            said = self._store.compare_set("swarmstep/lost", "", said).decode()
        except Exception as error:
            self.error = error
        return [int(r) for r in said.split(",") if r]

    def stop(self, wait: float = 5.0) -> None:
        """Stop beating, and wait at most so many seconds for it; peers will take this one for dead."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(wait)


def _alive(name: str) -> str:
    return f"swarmstep/alive/{name}"


def dead(name: str) -> str:
    """Return the counter that says, above 0, that the process of this name is dead."""
    return f"swarmstep/dead/{name}"
