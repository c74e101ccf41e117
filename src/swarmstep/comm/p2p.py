"""Large transfers by single sends and receives, where that keeps the wires fuller than gloo's own collectives do.

Among 4 workers at 100 Mbit/s a broadcast of 10 MB along a chain takes a third of the time of gloo's tree, and an
all-to-all of 2.5 MB, one partner after the other, 0.7 of gloo's, which sends to all at once. Where no wire limits,
gloo's are faster: so both are tried, and timed.
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

PIECE = 1 << 16  # bytes; the last rank waits for one piece more for every rank before it
PIECES = 1024  # at most so many; a longer vector has larger pieces
TAG = 1 << 20  # of the first piece; far from the tags that people use on a group of their own
THANKS = PIECES  # a tag behind those of the pieces: all has arrived
FLOOR = 1 << 20  # bytes; what is shorter has little to gain


@dataclass
class Trials:
    """How a verb of one group travels: gloo's way and ours are timed once each, then the faster is kept.

    Attributes:
        floor: bytes below which gloo's way is taken untried.
        ours: whether ours is taken; None until both were tried.
        costs: seconds a byte on this rank, of gloo's way and then of ours.
    """

    floor: int = FLOOR
    ours: bool | None = None
    costs: list[float] = field(default_factory=list[float])

    def way(self, data: Tensor, size: int) -> bool | None:
        """Return whether `data` goes our way; None if that is to be found out."""
        # Among two ranks both are the same; nccl has ways of its own.
        if data.device.type != "cpu" or data.nbytes < self.floor or (self.ours is None and size < 3):
            return False
        return self.ours

    def settle(self, all_costs: Tensor) -> None:
        """Choose by the costs of all ranks [size, 2], the same on all: the slowest rank counts."""
        theirs, ours = all_costs.amax(0).tolist()
        self.ours = ours < theirs


class Transfer(ABC):
    """Sends and receives under way, to be polled and waited for like a collective of torch's.

    A send or receive of gloo's cannot be polled, so they are waited for in a thread of their own. Whoever gives up
    calls `abandon`: the thread must not wake up while the interpreter ends.

    Args:
        group: a gloo group.
        peers: ranks of the world that this one has to do with.
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
        """Send and receive all there is; in the thread."""

    def _receive(self, source: int | None, room: Tensor, k: int) -> list[Any]:
        return [] if source is None else [dist.irecv(room, source, self._group, tag=TAG + k)]

    def _send(self, target: int | None, piece: Tensor, k: int) -> list[Any]:
        return [] if target is None else [dist.isend(piece, target, self._group, tag=TAG + k)]

    def is_completed(self) -> bool:
        """Return whether there is nothing left to wait for; `wait` then says how it ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait for the end, and raise what was raised."""
        self._thread.join()
        if self._error:
            raise self._error

    def abandon(self) -> None:
        """End the thread, and with it all connections of the group; the others learn of it at once."""
        close_connections(self._group, self._peers)
        self._thread.join(1.0)


class Chain(Transfer):
    """A broadcast along a chain, in pieces that are passed on as they arrive.

    In a tree the vector passes the same wire several times; in a chain each rank sends it once, and all send at
    the same time.

    Args:
        data: flat bytes on the CPU: what is sent at the start of the chain, elsewhere the room for it.
        place: this rank's place in the chain; 0 is the source.
        members: the chain, as ranks of the world.
        group: a gloo group of these ranks.
    """

    def __init__(self, data: Tensor, place: int, members: Sequence[int], group: Any) -> None:
        self._pieces = data.split(max(PIECE, -(-data.nbytes // PIECES))) if data.nbytes else ()
        self._before = members[place - 1] if place else None
        self._behind = members[place + 1] if place + 1 < len(members) else None
        super().__init__(group, [peer for peer in (self._before, self._behind) if peer is not None])

    def _move(self) -> None:
        # All receives at once: no piece waits until there is room for it.
        receives = [self._receive(self._before, piece, k) for k, piece in enumerate(self._pieces)]
        thanks = self._receive(self._behind, _byte(), THANKS)
        sends: list[Any] = []
        for k, (piece, receive) in enumerate(zip(self._pieces, receives, strict=True)):
            _wait_for(receive)
            sends += self._send(self._behind, piece, k)
        sends += self._send(self._before, _byte(), THANKS)
        _wait_for(thanks)  # before the sends: gloo tells a receive of a peer's death, but not always a send
        _wait_for(sends)


class Turns(Transfer):
    """An all-to-all, one partner after the other: at step s a rank sends to the s-th after it, and to nobody else.

    All at once, the rows meet in front of their receivers, and what controls them waits behind them.

    Args:
        result: flat bytes [size, n] on the CPU, the room for the rows.
        rows: flat bytes [size, n], what is sent.
        rank: this rank's place among the members.
        members: as ranks of the world.
        group: a gloo group of these ranks.
    """

    def __init__(self, result: Tensor, rows: Tensor, rank: int, members: Sequence[int], group: Any) -> None:
        self._result, self._rows, self._rank, self._members = result, rows, rank, members
        super().__init__(group, [member for place, member in enumerate(members) if place != rank])

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
