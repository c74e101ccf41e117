"""A connection between two processes, which stands and falls alone."""

from __future__ import annotations

import contextlib
from datetime import timedelta

import torch
from torch import Tensor

from swarmstep.comm.process_groups import UNUSED_TAG
from swarmstep.comm.torch_private import PrefixStore, TCPStore, pair_group


class Pair:
    """A gloo group of two ranks, apart from all other groups of this process.

    A peer that dies is noticed at once by whoever receives from it; one that stands still, when a wait has reached
    its limit. After an error nothing more goes through, and what a tensor then holds is not to be used.

    Args:
        store: a connection that nobody else uses meanwhile.
        name: under which the two meet, used once.
        rank: 0 for one of the two, 1 for the other.
        address: of this machine, by which the other reaches it.
        limit: seconds for the other to come.

    Raises:
        RuntimeError: it did not come.
    """

    def __init__(self, store: TCPStore, name: str, rank: int, address: str, limit: float) -> None:
        self._group = pair_group(PrefixStore(name, store), rank, address, limit)
        self._other = 1 - rank

    def send(self, data: Tensor, tag: int, seconds: float) -> None:
        """Send a tensor; raise RuntimeError if the peer is lost, or has not taken it within so many seconds."""
        self._group.send([data], self._other, tag).wait(timedelta(seconds=seconds))

    def receive(self, data: Tensor, tag: int, seconds: float) -> None:
        """Receive into a tensor; raise RuntimeError if the peer is lost, or sends nothing for so many seconds."""
        self._group.recv([data], self._other, tag).wait(timedelta(seconds=seconds))

    def close(self) -> None:
        """End the connection, with operations under way; the peer notices it at once."""
        with contextlib.suppress(RuntimeError):  # gloo closes it where a wait exceeds its limit
            self.receive(torch.zeros(1, dtype=torch.uint8), UNUSED_TAG, 0.001)
