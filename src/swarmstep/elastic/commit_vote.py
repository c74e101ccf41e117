"""A vote on the store about whether a round counts: for all ranks, or for none."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

from swarmstep import fault_points
from swarmstep.comm.group import Decision
from swarmstep.comm.process_groups import brief
from swarmstep.comm.store import Store
from swarmstep.errors import CommError, PeerLost
from swarmstep.waiting import Wait

LONGEST_PAUSE = 5e-3  # seconds between two looks at the verdict
COMMIT, ABORT = "commit", "abort"
ATTEMPTS = 5  # connections on which a verdict is asked for; each waits until the store answers


def first_verdict(key: str) -> str:
    """Return the key of the first verdict of the votes below `key`; it stays in the store."""
    return f"{key}/0"


class CommitVote:
    """One decision after another of the ranks of a group, each made by one compare-and-set in the store.

    Each rank votes once it has everything it needs. The one that sees all votes sets "commit", one that gives up
    sets "abort"; whichever was set first holds, for all. So a rank that dies before its vote takes nobody into the
    round, and one that dies after it keeps nobody out.

    Args:
        connect: returns a connection to the store that nobody else uses; called when it is needed.
        key: prefix of this group's votes in the store.
        size: of the group.
        requests: existing counters in the store, one for each field of Decision, in their order.
        begun: called after the first decision that something counts.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        key: str,
        size: int,
        requests: Sequence[str],
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect, self._key, self._size = connect, key, size
        self._requests, self._begun = list(requests), begun
        self._store: Store | None = None
        self._number = 0

    def decide(self, check: Callable[[float], None]) -> Decision:
        """Vote, and wait for the verdict.

        Args:
            check: called with the seconds waited; raises PeerLost if waiting for the other votes makes no sense.

        Raises:
            PeerLost: the verdict is that it does not count, or there was no vote.
            CommError: there was a vote, and the store does not tell the verdict: this rank cannot go on.
        """
        store, key, last = self._connected(), self._verdict_key, False
        try:
            last = store.add(f"{key}/votes", 1) == self._size
            if last:
                fault_points.reach(fault_points.COUNTED)
                self._commit(store, key)
            fault_points.reach(fault_points.VOTED)
            self._wait(store, key, check)
            verdict = store.get(key).decode().split()
        except (CommError, RuntimeError) as error:
            verdict = self._give_up(key, error)
        if verdict[0] == ABORT:
            raise PeerLost("another rank has given up the round")
        self._advance(last)
        return Decision(*(name in verdict for name in Decision._fields))

    def _give_up(self, key: str, error: CommError | RuntimeError) -> list[str]:
        """Abort and raise; if all votes have been counted by now, the round counts: return the verdict.

        Without a verdict this rank would not know whether what it holds is out of date, so it is waited for.
        """
        verdict: list[str] = []
        for _ in range(ATTEMPTS):
            with Wait(f"the store, to tell the verdict {key}"), contextlib.suppress(PeerLost):
                verdict = self._abort(self._connected(), key)
            if verdict or not self._store:
                break
            self._store = None
        if not verdict:
            raise CommError(
                f"voted, and the store does not tell whether the round counts ({brief(error)}): this worker "
                "cannot go on; the others do so without it"
            ) from error
        if verdict[0] != ABORT:
            return verdict
        if isinstance(error, CommError):
            raise error
        raise _no_answer(error) from error

    def _advance(self, last: bool) -> None:
        """Go on to the next vote; the last rank to vote removes the previous verdict, but never the first one."""
        # All ranks have voted, so all have read the previous verdict.
        if last and self._store and self._number > 1:
            with contextlib.suppress(RuntimeError):  # the store is gone: this round counts all the same
                for old in (f"{self._key}/{self._number - 1}", f"{self._key}/{self._number - 1}/votes"):
                    self._store.delete_key(old)
        self._number += 1
        if self._number == 1:
            self._begun()

    def _connected(self) -> Store:
        try:
            self._store = self._store or self._connect()
        except RuntimeError as error:
            raise _no_answer(error) from error
        return self._store

    @property
    def _verdict_key(self) -> str:
        return f"{self._key}/{self._number}"

    def _commit(self, store: Store, key: str) -> None:
        requested = [int(count) > 0 for count in store.multi_get(self._requests)]
        names = [name for name, is_set in zip(Decision._fields, requested, strict=True) if is_set]
        store.compare_set(key, "", " ".join([COMMIT, *names]))

    def _wait(self, store: Store, key: str, check: Callable[[float], None]) -> None:
        started, pause = time.monotonic(), 2e-4
        while not store.check([key]):  # polled: torch prints a warning for each wait that times out
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_PAUSE)
            check(time.monotonic() - started)

    def _abort(self, store: Store, key: str) -> list[str]:
        """Set "abort" unless there is a verdict, and return the verdict."""
        try:
            return store.compare_set(key, "", ABORT).decode().split()
        except RuntimeError as error:
            raise _no_answer(error) from error

    def close(self) -> None:
        """Abort the vote that is not decided yet, so that nobody waits for this rank's vote.

        Raises:
            PeerLost: the store does not answer.
        """
        self._abort(self._connected(), self._verdict_key)


def _no_answer(error: RuntimeError) -> PeerLost:
    return PeerLost(f"no answer from the store ({brief(error)})")
