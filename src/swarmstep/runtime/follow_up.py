"""What a round still sends after it has landed, while the next step computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from swarmstep.comm.background import Pending
from swarmstep.comm.metered import Metered, Traffic


class FollowUp:
    """The follow-up of the last round of a fragment.

    Args:
        comm: that it uses; nothing else may use it meanwhile.

    Attributes:
        traffic: of those that have ended and were not reported yet.
    """

    def __init__(self, comm: Metered) -> None:
        self._comm = comm
        self._pending: Pending[tuple[NamedTuple, Traffic]] | None = None
        self.traffic = Traffic()

    def start(self, task: Callable[[], NamedTuple]) -> None:
        """Start it in the background; `task` returns the state that it leaves."""

        def run() -> tuple[NamedTuple, Traffic]:
            with self._comm.counting() as traffic:
                return task(), traffic

        self._pending = self._comm.start(run)

    def settle(self, state: NamedTuple) -> None:
        """Wait until it has ended, if there is one, and change the state.

        Raises:
            CommError: it failed; each later call says so again.
        """
        if self._pending:
            left, traffic = self._pending.result()
            for tensor, value in zip(state, left, strict=True):
                tensor.copy_(value)
            self.traffic, self._pending = self.traffic + traffic, None

    def load(self, traffic: Traffic) -> None:
        """Forget it, and go on with this traffic to report."""
        self.traffic, self._pending = traffic, None

    def reported(self) -> Traffic:
        """Return the traffic, and count from 0."""
        traffic, self.traffic = self.traffic, Traffic()
        return traffic
