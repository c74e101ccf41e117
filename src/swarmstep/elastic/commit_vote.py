"""A vote on the store: whether a round counts, for everybody or for nobody."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from swarmstep import fault_points
from swarmstep.comm.group import Decision
from swarmstep.comm.process_groups import brief
from swarmstep.comm.torch_private import TCPStore
from swarmstep.errors import CommError, PeerLost

LONGEST_PAUSE = 5e-3  # seconds between two looks at the verdict
COMMIT, ABORT = "commit", "abort"


def first_verdict(key: str) -> str:
    """Return the key of the first verdict of a ballot, which stays in the store."""
    return f"{key}/0"


class CommitVote:
    """One decision after another among the ranks of a group, each made by one compare-and-set in the store.

    Every rank votes once it has all it needs. Whoever sees all votes sets "commit", whoever gives up sets
    "abort"; what was set first holds, for all. So a rank that dies before its vote takes nobody into the round,
    and one that dies after it keeps nobody out.

    Args:
        connect: makes a connection to the store that nobody else uses; called when it is needed.
        key: of this ballot in the store.
        size: of the group.
        wishes: counters in the store, all there, that stand for the fields of Decision in their order.
        settled: called after the first decision that something counts.
    """

    def __init__(
        self,
        connect: Callable[[], TCPStore],
        key: str,
        size: int,
        wishes: Sequence[str],
        settled: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect, self._key, self._size = connect, key, size
        self._wishes, self._settled = list(wishes), settled
        self._store: TCPStore | None = None
        self._number = 0

    def decide(self, check: Callable[[float], None]) -> Decision:
        """Vote, and wait for the verdict.

        Args:
            check: called with the seconds waited; raises PeerLost if the vote of somebody is in vain waited for.

        Raises:
            PeerLost: the verdict is that it does not count.
        """
        store, key, last = self._reached(), self._verdict, False
        try:
            last = store.add(f"{key}/votes", 1) == self._size
            if last:
                fault_points.reach(fault_points.COUNTED)
                self._commit(store, key)
            fault_points.reach(fault_points.VOTED)
            self._wait(store, key, check)
            said = store.get(key).decode().split()
        except (CommError, RuntimeError) as error:
            said = self._give_up(store, key, error)
        if said[0] == ABORT:
            raise PeerLost("another rank has given the round up")
        self._go_on(store, last)
        return Decision(*(name in said for name in Decision._fields))

    def _give_up(self, store: TCPStore, key: str, error: CommError | RuntimeError) -> list[str]:
        """Raise, unless all votes are there by now: then it counts, and the verdict is returned."""
        said = self._abort(store, key)
        if said[0] != ABORT:
            return said
        if isinstance(error, CommError):
            raise error
        raise _silent(error) from error

    def _go_on(self, store: TCPStore, last: bool) -> None:
        if last and self._number > 1:  # all have voted, so all have read the verdict before; the first one stays
            with contextlib.suppress(RuntimeError):  # the store is gone: this round counts all the same
                for old in (f"{self._key}/{self._number - 1}", f"{self._key}/{self._number - 1}/votes"):
                    store.delete_key(old)
        self._number += 1
        if self._number == 1:
            self._settled()

    def _reached(self) -> TCPStore:
        try:
            self._store = self._store or self._connect()
        except RuntimeError as error:
            raise _silent(error) from error
        return self._store

    @property
    def _verdict(self) -> str:
        return f"{self._key}/{self._number}"

    def _commit(self, store: TCPStore, key: str) -> None:
        raised = [int(count) > 0 for count in store.multi_get(self._wishes)]
        words = [COMMIT, *(name for name, wish in zip(Decision._fields, raised, strict=True) if wish)]
        store.compare_set(key, "", " ".join(words))

    def _wait(self, store: TCPStore, key: str, check: Callable[[float], None]) -> None:
        started, pause = time.monotonic(), 2e-4
        while not store.check([key]):  # torch prints a warning for each wait that is over in vain
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
            check(time.monotonic() - started)

    def _abort(self, store: TCPStore, key: str) -> list[str]:
        try:
            return store.compare_set(key, "", ABORT).decode().split()
        except RuntimeError as error:
            raise _silent(error) from error

    def close(self) -> None:
        """Give up what is not decided yet, so that nobody waits for this rank's vote.

        Raises:
            PeerLost: the store does not answer.
        """
        self._abort(self._reached(), self._verdict)


def _silent(error: RuntimeError) -> PeerLost:
    return PeerLost(f"no answer from the store ({brief(error)})")
