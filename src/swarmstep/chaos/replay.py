"""Sends old messages of an elastic run to its store again, as a network that repeats packets late would."""

from __future__ import annotations

import json
from collections.abc import Callable

from swarmstep.comm.store import Store
from swarmstep.elastic.keys import candidates_key, members_key, vote_key


class Replay:
    """Old messages of a run.

    Args:
        call: calls a function with a connection to the run's store.
    """

    def __init__(self, call: Callable[[Callable[[Store], list[str]]], list[str]]) -> None:
        self._call = call

    def again(self, worker: str) -> list[str]:
        """Send what a worker said before once more; return what that was."""
        return self._call(lambda store: _again(store, worker))


def _again(store: Store, worker: str) -> list[str]:
    epoch = 0
    while store.check([members_key(epoch + 1)]):
        epoch += 1
    sent = [f"a vote of epoch {epoch}", f"a heartbeat of {worker}", f"a wish to be in epoch {epoch + 1}"]
    store.add(f"{vote_key(epoch)}/0/votes", 1)
    store.add(f"swarmstep/alive/{worker}", 1)
    place = store.add(candidates_key(epoch + 1), 1)
    store.set(f"{candidates_key(epoch + 1)}/{place}", json.dumps([worker, [max(0, epoch - 1), 0]]))
    return sent
