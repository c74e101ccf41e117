"""Large transfers by point-to-point operations, where they keep the links busier than gloo's own collectives.

Among 4 workers at 100 Mbit/s, a broadcast of 10 MB along a chain takes a third of the time of gloo's tree, and a
pairwise all-to-all of 2.5 MB takes 0.7 of the time of gloo's, which sends to all at once. Where no link limits,
gloo's are faster: so both routes are tried and timed.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from swarmstep.comm.process_groups import close_connections

PIECE = 1 << 16  # bytes; the last rank waits one piece longer for each rank ahead of it
PIECES = 1024  # at most; a longer vector has larger pieces
TAG = 1 << 20  # of the first piece; far from the tags that people use on groups of their own
RECEIPT = PIECES  # a tag after those of the pieces: everything has arrived
FLOOR = 1 << 20  # bytes below which there is little to gain


@dataclass
class Route:
    """How a verb travels in one group: both routes are timed once, then the faster one is kept.

    Attributes:
        floor: bytes below which gloo's collective is used without a trial.
        point_to_point: whether the operations of this module are used; None until both routes have been timed.
        costs: seconds per byte on this rank, of gloo's collective, then of the point-to-point operations.
    """

    floor: int = FLOOR
    point_to_point: bool | None = None
    costs: list[float] = field(default_factory=list[float])

    def choice(self, data: Tensor, size: int) -> bool | None:
        """Return whether `data` goes point to point among `size` ranks; None if that is to be found out."""
        # Between two ranks both routes are the same; nccl has routes of its own.
        if data.device.type != "cpu" or data.nbytes < self.floor or (self.point_to_point is None and size < 3):
            return False
        return self.point_to_point

    def choose(self, all_costs: Tensor) -> None:
        """Choose by the costs of all ranks [size, 2], the same on all ranks: the slowest one counts."""
        collective, point_to_point = all_costs.amax(0).tolist()
        self.point_to_point = point_to_point < collective


class Transfer(ABC):
    """Sends and receives under way, to be polled and waited for like a collective of torch.

    Sends and receives of gloo cannot be polled, so they are waited for in a thread of their own. Whoever gives up
    calls `abandon`: the thread must not wake up while the interpreter ends.

    Args:
        group: a gloo group.
        peers: the ranks of the world that this one exchanges data with.
    """

    def __init__(self, group: Any, peers: Sequence[int]) -> None:
        self._group = group
        self._peers = peers
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="swarmstep-p2p", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._move()
        except BaseException as error:
            self._error = error

    @abstractmethod
    def _move(self) -> None:
        """Send and receive everything; runs in the thread."""

    def _receive(self, source: int | None, buffer: Tensor, k: int) -> list[Any]:
        return [] if source is None else [dist.irecv(buffer, source, self._group, tag=TAG + k)]

    def _send(self, target: int | None, data: Tensor, k: int) -> list[Any]:
        return [] if target is None else [dist.isend(data, target, self._group, tag=TAG + k)]

    def is_completed(self) -> bool:
        """Return whether there is nothing left to wait for; `wait` then tells how it ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the end, and raise what was raised."""
        self._thread.join()
        if self._error:
            raise self._error

    def abandon(self) -> None:
        """End the thread by closing this rank's connections to its peers, which notice it at once."""
        close_connections(self._group, self._peers)
        self._thread.join(1.0)


class ChainBroadcast(Transfer):
    """A broadcast along a chain, in pieces that are passed on as they arrive.

    In a tree the vector crosses the same link several times; in a chain each rank sends it once, and all ranks
    send at the same time.

    Args:
        data: flat bytes on the CPU: what is sent at the start of the chain; elsewhere, where it is received.
        position: of this rank in the chain; 0 is the source.
        members: the chain, as ranks of the world.
        group: a gloo group of these ranks.
    """

    def __init__(self, data: Tensor, position: int, members: Sequence[int], group: Any) -> None:
        self._pieces = data.split(max(PIECE, -(-data.nbytes // PIECES))) if data.nbytes else ()
        self._previous = members[position - 1] if position else None
        self._next = members[position + 1] if position + 1 < len(members) else None
        super().__init__(group, [peer for peer in (self._previous, self._next) if peer is not None])

    def _move(self) -> None:
        # All receives at once: no piece waits for a buffer.
        receives = [self._receive(self._previous, piece, k) for k, piece in enumerate(self._pieces)]
        receipt = self._receive(self._next, _byte(), RECEIPT)
        sends: list[Any] = []
        for k, (piece, receive) in enumerate(zip(self._pieces, receives, strict=True)):
            _wait_for(receive)
            sends += self._send(self._next, piece, k)
        sends += self._send(self._previous, _byte(), RECEIPT)
        _wait_for(receipt)  # before the sends: gloo fails a receive when the peer dies, but not always a send
        _wait_for(sends)


class PairwiseAllToAll(Transfer):
    """An all-to-all, one partner after another: in step s a rank sends only to the s-th rank after it.

    If all rows were sent at once, they would queue at their receivers, and control messages behind them.

    Args:
        result: flat bytes [size, n] on the CPU, where the rows are received.
        rows: flat bytes [size, n], what is sent.
        rank: of this process in the group.
        members: the group, as ranks of the world.
        group: a gloo group of these ranks.
    """

    def __init__(self, result: Tensor, rows: Tensor, rank: int, members: Sequence[int], group: Any) -> None:
        self._result, self._rows, self._rank, self._members = result, rows, rank, members
        super().__init__(group, [member for other, member in enumerate(members) if other != rank])

    def _move(self) -> None:
        size, sends = len(self._members), list[Any]()
        self._result[self._rank] = self._rows[self._rank]
        for s in range(1, size):
            source, target = (self._rank - s) % size, (self._rank + s) % size
            receive = self._receive(self._members[source], self._result[source], s)
            sends += self._send(self._members[target], self._rows[target], s)
            _wait_for(receive)
        _wait_for(sends)


def _wait_for(works: Sequence[Any]) -> None:
    for work in works:
        work.wait()  # once: a second wait would not end


def _byte() -> Tensor:
    return torch.zeros(1, dtype=torch.uint8)
