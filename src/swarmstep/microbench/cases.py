"""What is timed: rounds of strategies, and the minimal operations that would do the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.comm.group import Group
from swarmstep.errors import UsageError
from swarmstep.microbench import baselines
from swarmstep.microbench.interleaved_timing import Case
from swarmstep.runtime.options import Options
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.seeding import generator
from swarmstep.strategies import InformedSwarm
from swarmstep.strategies.base import Strategy
from swarmstep.strategies.pso_ps import PSOPS

PATTERN = 10**6  # random numbers, repeated as often as needed: no method's time depends on them
CHANGE = 1e-4  # of each weight between two rounds, times (rank + 1)


@dataclasses.dataclass(frozen=True)
class CaseMaker:
    """Makes the cases to be timed, for modules of one size.

    Args:
        comm: the group that takes part.
        parameters: P, elements of the module.
        tensors: T, number of its tensors, as equal in size as possible.
        seed: of the weights and of the rounds.
    """

    comm: Group
    parameters: int
    tensors: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.tensors <= self.parameters:
            raise UsageError(f"--tensors: expected 1 to {self.parameters}, the parameters; found {self.tensors}")

    def vector(self) -> Tensor:
        """Return the weights [P] before the first round, the same on all ranks."""
        pattern = torch.randn(min(self.parameters, PATTERN), generator=generator(self.seed))
        vector = torch.empty(self.parameters)
        for piece in vector.split(PATTERN):
            piece.copy_(pattern[: len(piece)])
        return vector

    def module(self) -> nn.Module:
        """Return a module of P parameters in T tensors."""
        return nn.ParameterList([nn.Parameter(piece.clone()) for piece in self.vector().split(self.sizes)])

    @property
    def sizes(self) -> list[int]:
        """The elements of each tensor."""
        size, remainder = divmod(self.parameters, self.tensors)
        return [size + (i < remainder) for i in range(self.tensors)]

    def changed(self, module: nn.Module) -> Callable[[], None]:
        """Return a stand-in for local steps: it changes all weights in place, differently on each rank."""

        def change() -> None:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(CHANGE * (self.comm.rank + 1))

        return change

    def synchronized(
        self, strategy: Strategy, loss: Callable[[int], float] = lambda round_: 1.0, **options: Any
    ) -> Case:
        """Return a round of a strategy, as a user calls it.

        Args:
            strategy: with `Every(1)`.
            loss: the loss of round 0, 1, ... on this rank.
            options: of the Synchronizer, such as codec.
        """
        module = self.module()
        synchronizer = Synchronizer(module, strategy, self.comm, Options(seed=self.seed, **options))
        count = iter(range(10**9))
        return Case(self.changed(module), lambda: synchronizer.step(loss(next(count))))

    def of_module(self, average: Callable[[nn.Module], Callable[[], object]]) -> Case:
        """Return a call of the function that `average` returns for a module."""
        module = self.module()
        return Case(self.changed(module), average(module))

    def all_reduce(self) -> Case:
        """Return an all-reduce of one flat vector in place."""
        vector, start = self.vector(), self.vector()
        return Case(lambda: _set(vector, start), lambda: baselines.all_reduce(vector))

    def all_reduce_bfloat16(self) -> Case:
        """Return an all-reduce in bfloat16: rounded, summed, and converted back."""
        vector, start = self.vector(), self.vector()
        short = torch.empty_like(vector, dtype=torch.bfloat16)

        def run() -> None:
            short.copy_(vector)
            baselines.all_reduce(short)
            vector.copy_(short)

        return Case(lambda: _set(vector, start), run)

    def broadcast(self) -> Case:
        """Return a broadcast of rank 0's flat vector in place."""
        vector = self.vector()
        return Case(lambda: None, lambda: baselines.broadcast(vector))

    def outer_move(self) -> Case:
        """Return an all-reduce followed by the move of the informed swarm (and of DiLoCo) on flat vectors."""
        x, anchor = self.vector(), self.vector()
        velocity = torch.zeros_like(x)
        strategy, size = InformedSwarm(trust="uniform"), self.comm.size

        def run() -> None:
            baselines.all_reduce(x)
            change = x.div_(size).sub_(anchor)
            velocity.mul_(strategy.inertia).add_(change)
            anchor.add_(change.add_(velocity, alpha=strategy.inertia), alpha=strategy.social)
            x.copy_(anchor)

        return Case(lambda: _nudge(x, self.comm.rank), run)

    def pull_move(self, *, broadcast: bool) -> Case:
        """Return the move of PSO-PS on flat vectors, with one r1 and one r2 for the whole vector.

        Args:
            broadcast: before the move, broadcast the leader and store x as the particle's best.
        """
        x, best, leader = self.vector(), self.vector(), self.vector()
        velocity = torch.zeros_like(x)
        strategy, rank = PSOPS(), self.comm.rank
        c1, c2 = strategy.cognitive * 0.5, strategy.social * 0.5

        def run() -> None:
            if broadcast:
                if rank == 0:
                    leader.copy_(x)
                baselines.broadcast(leader)
                best.copy_(x)
            velocity.mul_(strategy.inertia).add_(best, alpha=c1).add_(leader, alpha=c2).sub_(x, alpha=c1 + c2)
            x.add_(velocity)

        return Case(lambda: _nudge(x, rank), run)


def _set(vector: Tensor, start: Tensor) -> None:
    vector.copy_(start)  # otherwise the sums would overflow


def _nudge(x: Tensor, rank: int) -> None:
    x.add_(CHANGE * (rank + 1))
