"""Hierarchical local SGD: averages inside a host in every round, between hosts in every k-th."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor

from swarmstep.cards import CARDS, Card
from swarmstep.comm.base import Comm, rank_ordered_sum
from swarmstep.errors import UsageError
from swarmstep.ownership import Shared
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Strategy


class HierarchicalState(NamedTuple):
    """The number of rounds, which decides whether the hosts meet."""

    rounds: Shared  # int64 []: rounds so far


class HierarchicalMessage(NamedTuple):
    """The mean of the host, or of all workers where the hosts meet, [P]."""

    mean: Tensor


@final
@dataclasses.dataclass(frozen=True)
class Hierarchical(Strategy[HierarchicalState, HierarchicalMessage]):
    """Average inside each host in every round, and over all hosts in every k-th: for slow links between hosts.

    ::

        x_i = mean of the x_j on the host of i        round = 1, 2, 3, ...
        x_i = mean of all x_j                         where round mod k = 0

    The ranks of a host are consecutive: rank i is on host i // local_size. Where the hosts meet, each worker of a
    host averages another slice of the vector with its peers on the other hosts, so that each slice crosses the
    slow link once. Workers that have finished their data do not count; a host on which all have finished keeps its
    weights until the hosts meet. With one host, or k = 1, this is local SGD; with local_size=1, local SGD in every
    k-th round. The model at the end is the mean of the workers.

    Args:
        local_size: workers on a host, at least 1, a divisor of the number W of all workers; None means that all
            workers are on one host.
        outer_every: k, the hosts meet in every k-th round, at least 1.
        when: the trigger; by default every 16th step.

    Raises:
        UsageError: an argument is out of its range, or `local_size` does not divide the number of workers.

    Cost: with L workers on a host, a worker sends 2 (L-1)/L P a round; 2 (W-1)/W P where the hosts meet. Each of H
    hosts sends 2 (H-1)/H P to the others in every k-th round, and nothing in the rounds between. No memory.

    Source: Lin, Stich, Patel, Jaggi, Don't Use Large Mini-Batches, Use Local SGD, arXiv 1808.07217, hierarchical
    local SGD; from memory, not checked against the paper. Its H local steps between means of a block, and H^b of
    those between means of all, are `when=Every(H)` and `outer_every`. Here k counts rounds, which may come from
    any trigger; the slices are ours.
    """

    card: ClassVar[Card] = CARDS["hierarchical"]

    local_size: int | None = None
    outer_every: int = 4

    def __post_init__(self) -> None:
        if self.local_size is not None and self.local_size < 1:
            raise UsageError(f"local_size: expected at least 1, or None, found {self.local_size}")
        if self.outer_every < 1:
            raise UsageError(f"outer_every: expected at least 1, found {self.outer_every}")

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> HierarchicalState:
        local = self.local_size or comm.size
        if comm.size % local:
            raise UsageError(
                f"Hierarchical: {comm.size} workers do not fill hosts of local_size={local}; start a multiple of "
                f"{local} workers, or give a local_size that divides {comm.size}"
            )
        if 1 < local < comm.size:
            _groups(comm, local)
        return HierarchicalState(torch.tensor(0))

    def exchange(
        self, x: Tensor, state: HierarchicalState, signal: Signal, roll: Roll, comm: Comm
    ) -> HierarchicalMessage:
        local = self.local_size or comm.size
        meet = (int(state.rounds) + 1) % self.outer_every == 0
        if local == comm.size or (meet and local == 1):
            return HierarchicalMessage(comm.mean(x, roll.weight(comm.rank))[0])
        first = comm.rank - comm.rank % local
        weights = [roll.weight(rank) for rank in range(first, first + local)]
        if meet:
            return HierarchicalMessage(_mean_of_all(x, weights, *_groups(comm, local)))
        if local == 1 or not any(weights):
            return HierarchicalMessage(x.clone())
        inside, _ = _groups(comm, local)
        return HierarchicalMessage(inside.mean(x, weights[inside.rank])[0])

    def apply(self, x: Tensor, state: HierarchicalState, message: HierarchicalMessage, layout: Layout) -> None:
        x.copy_(message.mean)
        state.rounds.add_(1)

    def consensus(self, x: Tensor, message: HierarchicalMessage) -> Tensor:
        return message.mean


def _groups(comm: Comm, local: int) -> tuple[Comm, Comm]:
    """Return the workers of this host, and this worker's peers on all hosts; made once."""
    inside = comm.split(comm.rank // local, f"hosts of {local}")
    return inside, comm.split(comm.rank % local, f"across hosts of {local}")


def _mean_of_all(x: Tensor, weights: list[float], inside: Comm, across: Comm) -> Tensor:
    """Return the mean of all workers that take part; `weights` are those of the workers of this host."""
    slices = torch.nn.functional.pad(x, (0, -len(x) % inside.size)).view(inside.size, -1)
    rows = inside.all_to_all(slices)  # row j: the slice that this worker adds up, of worker j of the host
    total = sum(weights)
    weighed = zip(rows, weights, strict=True)
    terms = [row if weight == 1.0 else row.mul_(weight) for row, weight in weighed if weight]
    host_mean = rank_ordered_sum(terms).div_(total) if terms else rows[0]
    mean = across.mean(host_mean, total)[0]
    return inside.gather(mean).view(-1)[: len(x)]
