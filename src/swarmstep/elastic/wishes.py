"""Rounds that each member of a group may want at another time: they begin once all have wanted them."""

from __future__ import annotations

import contextlib
import time

from swarmstep.comm.background import BackgroundTask, TaskRegistry
from swarmstep.elastic.formation import POLL
from swarmstep.elastic.store_link import StoreLink
from swarmstep.errors import CommError


class Wishes:
    """One worker's wishes for rounds, which all members of its group count in the store.

    The store is asked in the background: while it does not answer, the worker goes on with local steps.

    Args:
        link: to the store.
        patience: seconds to wait for members that are alive.
    """

    def __init__(self, link: StoreLink, patience: float) -> None:
        self._link, self._patience = link, patience
        self._tasks = TaskRegistry()
        self._key = ""  # of the last round that this worker has wanted
        self._met: BackgroundTask[bool] | None = None  # waits until all want it

    def meet(self, key: str, size: int) -> bool:
        """Want a round; return whether all members do by now. Waits for nobody.

        Args:
            key: of the round in the store.
            size: of the group.

        Raises:
            CommError: a member that is alive has not wanted it within `patience` seconds.
        """
        if key != self._key:
            before, self._key = self._key, key
            self._met = self._tasks.start(lambda: self._await_all(key, size, before))
        return self._met is not None and self._met.done and self._met.result()

    def _await_all(self, key: str, size: int, before: str) -> bool:
        """Wait until all members have counted themselves under a key; False if it is not wanted any more."""
        store, count, deadline = self._link.store, 0, time.monotonic() + self._patience
        while count < size:
            if key != self._key:
                return False
            if time.monotonic() > deadline:
                raise CommError(
                    f"worker {self._link.name}: waited {self._patience:g} s for {size} members, alive, to come "
                    f"to the next round; {count} came; to wait longer, raise patience (--patience SECONDS)"
                )
            with contextlib.suppress(RuntimeError):  # no answer; whether it comes back shows in the heartbeats
                count = int(store.get(key)) if count else store.add(key, 1)
            if count < size:
                time.sleep(POLL)
        with contextlib.suppress(RuntimeError):
            if before:
                store.delete_key(before)  # its round has landed everywhere
        return True

    def end(self) -> None:
        """Want no round any more."""
        self._key = ""
