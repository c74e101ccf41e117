"""FedPSO: PSO-PS with the probe's loss as fitness and a strong pull to the leader."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

from swarmstep.cards import CARDS, Card
from swarmstep.strategies.pso_ps import PSOPS


@final
@dataclasses.dataclass(frozen=True)
class FedPSO(PSOPS):
    """PSO-PS with other defaults: fitness on the shared probe batch, a strong leader, r1 and r2 for each particle.

    Args:
        cognitive: c1, 0 to 4: the pull to the particle's own best.
        social: c2, 0 to 4: the pull to the best particle of the round.
        random: "vector": one r1 and r2 for each particle.
        fitness: "probe": the loss on the shared probe batch.

    All other arguments, and what these may be, are as in `PSOPS`.

    Raises:
        UsageError: an argument is out of its range; the Synchronizer has no probe.

    Cost: a probe, a gather of one number, and one broadcast of P a round, (W-1)/W P sent by each worker. Memory:
    3 P.

    Source: Park, Suh, Lee, FedPSO, Sensors 21(2), 2021; coefficients, one r1 and r2 for each particle and the
    best of the round as in the authors' code. There the fitness is each client's loss on a validation split of
    its own, clients train for epochs between rounds, and velocities start at random in -0.1 .. 0.1; here it is
    the shared probe batch, and velocities start at 0.
    """

    card: ClassVar[Card] = CARDS["fedpso"]

    cognitive: float = 0.7
    social: float = 1.4
    random: str = "vector"
    fitness: str = "probe"
