"""The verbs on process groups of torch.distributed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from swarmstep.comm.base import (
    Comm,
    checked_rows,
    checked_source,
    checked_src,
    divided,
    rank_ordered_sum,
    weighted,
)
from swarmstep.comm.buffer_pool import BufferPool
from swarmstep.comm.p2p import ChainBroadcast, PairwiseAllToAll, Route, Transfer
from swarmstep.comm.peer_watch import PeerWatch


class Collectives(Comm):
    """The verbs of `Comm`; `DistComm` adds the life of a group.

    Args:
        data: the process group for tensors on the model's device.
        control: a gloo group of the same ranks, for CPU tensors.
        exact: as in `DistComm`.

    Attributes:
        routes: how the verbs travel that have two ways to do so.
    """

    def __init__(self, data: Any, control: Any, *, exact: bool) -> None:
        self._data, self._control = data, control
        self._exact = exact
        self.rank = dist.get_rank(data)
        self.size = dist.get_world_size(data)
        self._members = dist.get_process_group_ranks(data)  # their ranks in the world
        self._watch: PeerWatch  # set by the subclass
        self._pool = BufferPool(reuse=False)
        self.routes = {"broadcast": Route(), "all_to_all": Route()}  # shared by what `reusing` returns

    def clock(self) -> float:
        return time.perf_counter()

    def sent(self, x: Tensor) -> Tensor:
        return x

    def _group(self, x: Tensor) -> Any:
        return self._control if x.device.type == "cpu" else self._data

    def _sum(self, term: Tensor) -> Tensor:
        """Sum `term` over all ranks; its length is a multiple of the size if exact. May reuse its memory."""
        if not self._exact:
            self._watch.run("mean", dist.all_reduce, term, group=self._group(term))
            return term
        terms = self._pool.take(term.shape, term)
        self._all_to_all("mean", terms, term)
        chunk = rank_ordered_sum(terms.chunk(self.size))
        self._watch.run("mean", dist.all_gather, list(term.chunk(self.size)), chunk, group=self._group(term))
        return term

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        extra = 1 + (-(x.numel() + 1) % self.size if self._exact else 0)
        term = weighted(x, weight, self.size, self._pool.take((x.numel() + extra,), x))
        return divided(self._sum(term), x, self.size)

    def gather(self, x: Tensor) -> Tensor:
        return self._gather("gather", x)

    def _gather(self, verb: str, x: Tensor) -> Tensor:
        rows = self._pool.take((self.size, *x.shape), x)
        outputs = list(_bytes(rows).view(self.size, x.nbytes))
        self._watch.run(verb, dist.all_gather, outputs, _bytes(x), group=self._group(x))
        return rows

    def broadcast(self, x: Tensor, src: int) -> Tensor:
        src = checked_src(src, self.size)
        result = self._pool.take(x.shape, x).copy_(x)
        data, group = _bytes(result), self._group(x)

        def collective() -> None:
            self._watch.run("broadcast", dist.broadcast, data, dist.get_global_rank(group, src), group=group)

        def chain() -> None:
            members = self._members[src:] + self._members[:src]
            self._transfer("broadcast", ChainBroadcast(data, (self.rank - src) % self.size, members, group), group)

        self._faster("broadcast", self.routes["broadcast"], data, collective, chain)
        return result

    def _faster(
        self,
        verb: str,
        route: Route,
        data: Tensor,
        collective: Callable[[], None],
        point_to_point: Callable[[], None],
    ) -> None:
        """Take the faster route; until it is known, time the one that has not been timed yet."""
        choice = route.choice(data, self.size)
        if choice is not None:
            return point_to_point() if choice else collective()
        self._gather(verb, torch.zeros(1))  # waiting for late ranks is not part of the time
        started = time.perf_counter()
        (point_to_point if route.costs else collective)()
        route.costs.append((time.perf_counter() - started) / data.nbytes)
        if len(route.costs) == 2:  # all ranks choose the same one
            route.choose(self._gather(verb, torch.tensor(route.costs, dtype=torch.float64)))
        return None

    def _transfer(self, verb: str, work: Transfer, group: Any) -> None:
        try:
            self._watch.run(verb, lambda **_: work, group=group)
        except BaseException:
            work.abandon()
            raise

    def permute(self, x: Tensor, source: Sequence[int]) -> Tensor:
        source = checked_source(source, self.size)
        result = self._pool.take(x.shape, x)
        sends, receives = [0] * self.size, [0] * self.size
        receives[source[self.rank]] = sends[source.index(self.rank)] = x.nbytes
        ends = _bytes(result), _bytes(x)
        self._watch.run("permute", dist.all_to_all_single, *ends, receives, sends, group=self._group(x))
        return result

    def all_to_all(self, x: Tensor) -> Tensor:
        result = self._pool.take(checked_rows(x, self.size).shape, x)
        self._all_to_all("all_to_all", _bytes(result), _bytes(x))
        return result

    def _all_to_all(self, verb: str, result: Tensor, rows: Tensor) -> None:
        """Fill `result` with the rows that the other ranks have for this one, both flat.

        Args:
            verb: what it is for, to be named in errors.
            result: flat, of the same length and dtype as `rows`.
            rows: flat, what this rank has for each rank, in rank order.
        """
        group = self._group(rows)

        def collective() -> None:
            self._watch.run(verb, dist.all_to_all_single, result, rows, group=group)

        def pairwise() -> None:
            ends = result.view(self.size, -1), rows.view(self.size, -1)
            self._transfer(verb, PairwiseAllToAll(*ends, self.rank, self._members, group), group)

        self._faster(verb, self.routes["all_to_all"], rows, collective, pairwise)


def _bytes(x: Tensor) -> Tensor:
    """Return x as flat bytes, without a copy if it is contiguous: what is only moved may have any dtype."""
    flat = x.detach().contiguous().as_strided((x.numel(),), (1,))  # a single element may have any stride
    return flat.view(torch.uint8)
