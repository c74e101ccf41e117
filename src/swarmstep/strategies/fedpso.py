"""FedPSO: PSO-PS with the probe's loss as fitness and a strong pull to the leader."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, final

from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.base import Card, S, Strategy
from swarmstep.strategies.pso_ps import PSOPS, Moves


@final
@dataclasses.dataclass(frozen=True)
class FedPSO(Strategy):
    """Move every particle by PSO, with the fitness measured on the shared probe batch.

    This is ``PSOPS(inertia, cognitive, social, random="vector", fitness="probe")``.

    Args:
        inertia: w, 0 to 1.
        cognitive: c1, 0 to 4: the pull to the particle's own best.
        social: c2, 0 to 4: the pull to the best particle of the round.
        when: the trigger; the default is each 16th step.

    Raises:
        UsageError: an argument is out of its range; the Synchronizer has no probe.

    Cost: a probe, a gather of a number, and one broadcast of P a round, (W-1)/W P sent by each worker. Memory:
    3 P.

    Source: Park, Suh, Lee, FedPSO, Sensors 21(2), 2021; coefficients, one r1 and r2 for each particle and the
    best of the round as in the authors' code. There the fitness is each client's loss on a validation split of
    its own, clients train for epochs between rounds, and velocities start at random in -0.1 .. 0.1; here it is
    the shared probe batch, and velocities start at 0.
    """

    card: ClassVar[Card] = Card(
        title="PSO-PS with the probe as fitness and a strong leader",
        traffic="(W-1)/W",
        memory="3",
        paper="Sensors 21(2) 2021",
        bibtex="""@article{park2021fedpso,
  title     = {{FedPSO}: Federated Learning Using Particle Swarm Optimization to Reduce Communication Costs},
  author    = {Sunghwan Park and Yeryoung Suh and Jaewoo Lee},
  journal   = {Sensors},
  volume    = {21},
  number    = {2},
  year      = {2021}
}""",
    )
    buffers: ClassVar[tuple[str, ...]] = PSOPS.buffers

    inertia: float = 0.3
    cognitive: float = 0.7
    social: float = 1.4

    def __post_init__(self) -> None:
        self._pso()  # checks the ranges

    def _pso(self) -> PSOPS:
        return PSOPS(self.inertia, self.cognitive, self.social, random="vector", fitness="probe")

    @property
    def common(self) -> str:
        return self._pso().common

    @property
    def needs_probe(self) -> bool:
        return True

    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NamedTuple:
        return self._pso().init(x, layout, comm)

    def carry(self, state: S, fresh: S, sources: Sequence[int | None], rank: int) -> S:
        return self._pso().carry(state, fresh, sources, rank)

    def exchange(self, x: Tensor, state: NamedTuple, signal: Signal, roll: Roll, comm: Comm) -> Moves:
        return self._pso().exchange(x, state, signal, roll, comm)

    def apply(self, x: Tensor, state: NamedTuple, message: NamedTuple) -> None:
        self._pso().apply(x, state, message)

    def consensus(self, x: Tensor, message: NamedTuple) -> Tensor:
        return self._pso().consensus(x, message)

    def result(self, x: Tensor, state: NamedTuple, comm: Comm) -> Tensor:
        return self._pso().result(x, state, comm)
