"""Heartbeats on the store, so that a dead peer can be told from a slow one.

They come from a thread, which has to wait while another one holds the interpreter lock: a peer that misses a few
is asked through its `Witness`, whose answer counts as a heartbeat.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Sequence

from swarmstep.comm.interfaces import own_address
from swarmstep.comm.store import Store
from swarmstep.comm.witness import Witness, vouched
from swarmstep.waiting import Wait

PERIOD = 0.5  # seconds between two heartbeats


class Heartbeat:
    """Sends this process's heartbeats and watches those of its peers, in a thread of its own.

    Args:
        store: a connection that nobody else uses.
        name: of this process.
        names: of the processes to watch, in rank order; this one may be among them.
        period: seconds between two heartbeats.
        host: of the store; towards it this process has a witness (None: it needs none).

    Attributes:
        error: why the store cannot be reached any more, or None.
    """

    def __init__(
        self,
        store: Store,
        name: str,
        names: Sequence[str],
        period: float = PERIOD,
        host: str | None = None,
    ) -> None:
        self._store = store
        self._host = host
        self._witness: Witness | None = None
        self._witnesses = dict[str, str]()  # of the processes that were asked for so far: their addresses
        self._name = name
        self.period = period
        self._answered = time.monotonic()  # when the store answered last
        self._asked: float | None = None  # when the request was sent that the store has not answered yet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="swarmstep-heartbeat", daemon=True)
        self._lock = threading.Lock()
        self.error: Exception | None = None
        self._names, self._flag = list[str](), ""
        self._counts, self._seen = list[bytes](), list[float]()
        self._dead, self._flagged = set[str](), False
        self.watch(names)
        store.add(alive_key(name), 1)

    def watch(self, names: Sequence[str], flag: str = "") -> None:
        """Watch these processes from now on, instead of those before; and a counter in the store, for `flagged`.

        What is known of a name that was watched before is kept.
        """
        now = time.monotonic()
        with self._lock:
            if (list(names), flag) == (self._names, self._flag):
                return
            known = dict(zip(self._names, zip(self._counts, self._seen, strict=True), strict=True))
            pairs = [known.get(name, (b"", now)) for name in names]
            self._names, self._flag = list(names), flag
            self._counts, self._seen = [count for count, _ in pairs], [seen for _, seen in pairs]
            self._dead &= set(names)
            self._flagged = False

    def reset(self) -> None:
        """Count silence from now on: this process has just met all processes that it watches."""
        now = time.monotonic()
        with self._lock:
            self._answered, self._seen = now, [now] * len(self._names)

    def start(self) -> None:
        """Start the thread; by now every process that is watched has made its Heartbeat."""
        if self._host:
            with contextlib.suppress(OSError):  # without one, this process is lost while it cannot send
                self._witness = Witness(own_address(self._host))
                self._store.set(witness_key(self._name), self._witness.address)
        self.reset()
        self._thread.start()
        atexit.register(self.stop)  # no thread may be inside the store while the interpreter ends

    def _run(self) -> None:
        try:
            while not self._stop.wait(self.period):
                with Wait("the store, to answer a heartbeat"):
                    self._beat()
        except Exception as error:
            self.error = error
        finally:
            atexit.unregister(self.stop)  # which holds the connection

    def _beat(self) -> None:
        """Send a heartbeat, and look for those of the others."""
        self._asked = time.monotonic()
        self._store.add(alive_key(self._name), 1)
        with self._lock:
            names, flag = self._names, self._flag
        counters = [dead_key(name) for name in names] + ([flag] if flag else [])
        keys = [alive_key(name) for name in names] + counters
        if not self._store.check(keys):  # not yet, or no longer: `multi_get` would wait for them
            for key in keys:
                self._store.add(key, 0)
        self._record(names, self._store.multi_get(keys) if keys else [])
        self._ask_for(names)

    def _record(self, names: list[str], values: list[bytes]) -> None:
        """Take in what the store answered: a heartbeat count of each name, then `dead` of each, then the flag."""
        now = time.monotonic()
        with self._lock:
            self._asked = None
            if names is not self._names:
                return  # `watch` was called meanwhile, and nothing was learnt about the new names
            self._answered = now
            for place, count in enumerate(values[: len(names)]):
                if count != self._counts[place]:
                    self._counts[place], self._seen[place] = count, now
            raised = [int(value) > 0 for value in values[len(names) :]]
            self._dead |= {name for name, is_dead in zip(names, raised, strict=False) if is_dead}
            self._flagged = len(raised) > len(names) and raised[-1]

    def _ask_for(self, names: list[str]) -> None:
        """Ask the witnesses of those that miss heartbeats; who lives has been seen."""
        with self._lock:
            limit = self._answered - 2 * self.period
            late = [name for name, seen in zip(names, self._seen, strict=False) if seen < limit]
            late = [name for name in late if name not in self._dead and name != self._name]
        for name in late:
            key = witness_key(name)
            if name not in self._witnesses and self._store.check([key]):
                self._witnesses[name] = self._store.get(key).decode()
        asked = [self._witnesses[name] for name in late if name in self._witnesses]
        alive = vouched(asked, self.period) if asked else set[str]()
        now = time.monotonic()
        with self._lock:
            for place, name in enumerate(self._names):
                if name in late and self._witnesses.get(name) in alive:
                    self._seen[place] = now

    def silent(self, seconds: float) -> list[int]:
        """Return the ranks whose last heartbeat was at least so long before the store's last answer.

        Counted back from that answer, not from now: while this process itself is stopped, or the store is, nothing
        is learnt about the peers.
        """
        with self._lock:
            limit = self._answered - seconds
            return [r for r, seen in enumerate(self._seen) if seen < limit and self._names[r] != self._name]

    def name_of(self, rank: int) -> str:
        """Return the name of a rank."""
        return self._names[rank]

    def dead(self) -> set[str]:
        """Return the names of the processes that were reported dead, such as by the supervisor."""
        with self._lock:
            return set(self._dead)

    def flagged(self) -> bool:
        """Return whether the counter to watch was above 0 when the store answered last."""
        return self._flagged

    def store_silent(self, seconds: float) -> bool:
        """Return whether the store has left a request unanswered for so long."""
        asked = self._asked
        return asked is not None and time.monotonic() - asked > seconds

    def agree_on_lost(self, ranks: list[int]) -> list[int]:
        """Report which ranks are lost; return what the first report says, so that all ranks name the same ones."""
        agreed = ",".join(map(str, ranks))
        if self.store_silent(4 * self.period):  # it would not answer this request either
            return ranks
        try:
            agreed = self._store.compare_set("swarmstep/lost", "", agreed).decode()
        except Exception as error:
            self.error = error
        return [int(rank) for rank in agreed.split(",") if rank]

    def stop(self, wait: float = 5.0) -> None:
        """Stop the thread, waiting at most so many seconds for it; peers will then take this process for dead."""
        self._stop.set()
        if self._witness:
            self._witness.end()
        if self._thread.is_alive():
            self._thread.join(wait)


def witness_key(name: str) -> str:
    """Return the key of the address of a process's witness."""
    return f"swarmstep/witness/{name}"


def alive_key(name: str) -> str:
    """Return the key of the count of a process's heartbeats."""
    return f"swarmstep/alive/{name}"


def dead_key(name: str) -> str:
    """Return the key of the counter that is above 0 once the process of this name is known to be dead."""
    return f"swarmstep/dead/{name}"
