"""One worker's connection to the store, with its heartbeats; reopened where the store does not answer."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from typing import TypeVar

from swarmstep.comm import process_groups
from swarmstep.comm.heartbeat import Heartbeat
from swarmstep.comm.store import Address, Store
from swarmstep.elastic.keys import FINISH, OVER, RUN, STOP
from swarmstep.errors import CommError
from swarmstep.waiting import Wait

T = TypeVar("T")

PERIOD = 0.2  # seconds between two heartbeats


class StoreLink:
    """The store as one worker sees it.

    Args:
        address: of the store.
        name: of this worker.
        patience: seconds to wait for the store.

    Attributes:
        store: the connection.
        heartbeat: of this worker, on a connection of its own.
        run: an identifier of this run, the same for all workers.

    Raises:
        CommError: the store cannot be reached.
    """

    def __init__(self, address: Address, name: str, patience: float) -> None:
        self.name = name
        self._address, self._patience = address, patience
        self.store: Store
        self.heartbeat: Heartbeat
        self.run: str
        self.reached(lambda: self._open([]))

    def connect(self) -> Store:
        """Return a new connection to the store; raise RuntimeError if there is none within `patience` seconds."""
        return self._address.connect(self._patience)

    def _open(self, members: Sequence[str]) -> None:
        self.store = self.connect()
        for key in (STOP, FINISH, OVER):
            self.store.add(key, 0)
        self.run = self.store.compare_set(RUN, "", secrets.token_hex(8)).decode()
        self.heartbeat = Heartbeat(self.connect(), self.name, members, PERIOD, self._address.host)
        self.heartbeat.start()

    def reopen_if_silent(self, members: Sequence[str]) -> None:
        """Reconnect where the store does not answer: after a network cut, an old connection would hang on.

        Args:
            members: whose heartbeats to watch.

        Raises:
            CommError: the store cannot be reached.
        """
        if self.heartbeat.error or self.heartbeat.store_silent(2 * PERIOD):
            self.heartbeat.stop(wait=0.0)
            self.reached(lambda: self._open(members))

    def reached(self, task: Callable[[], T]) -> T:
        """Run a task that uses the store; raise CommError, which says so, where the store cannot be reached."""
        try:
            with Wait(f"the store at {self._address}"):
                return task()
        except RuntimeError as error:
            raise CommError(
                f"worker {self.name}: the store at {self._address} cannot be reached: "
                f"{process_groups.brief(error)}; {self._address.advice}"
            ) from error

    def lost(self, silence: float) -> set[str]:
        """Return the names of the watched workers that are dead, or without a heartbeat for `silence` seconds."""
        silent = self.heartbeat.silent(silence)
        return self.heartbeat.dead() | {self.heartbeat.name_of(rank) for rank in silent}

    def trouble(self, silence: float) -> str | None:
        """Return why waiting for the present group makes no sense, or None if it does."""
        heartbeat = self.heartbeat
        if heartbeat.error or heartbeat.store_silent(silence):
            why = process_groups.brief(heartbeat.error) if heartbeat.error else f"no answer for {silence:g} s"
            return f"the store cannot be reached ({why})"
        if heartbeat.flagged():
            return "others have begun to form the next group"
        if heartbeat.dead():
            return f"{_workers(heartbeat.dead())} has died"
        silent = {heartbeat.name_of(rank) for rank in heartbeat.silent(silence)}
        return f"no heartbeat from {_workers(silent)} for {silence:g} s" if silent else None


def _workers(names: set[str]) -> str:
    return f"worker{'s' if len(names) > 1 else ''} {', '.join(sorted(names))}"
