"""What the swarm loses without each worker, measured on a probe batch that is the same for all.

A probe is a function of a vector [P]; its value, the loss, may differ between ranks by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.signal import Roll
from swarmstep.strategies.parts import trust

Probe = Callable[[Tensor], float]


def leave_one_out(
    x: Tensor, mean: Tensor, included: Tensor, roll: Roll, probe: Probe, comm: Comm, *, audit: bool
) -> tuple[Tensor, float]:
    """Return (q [W] float64, the loss of the mean), the same on all ranks.

    ::

        S   = sum_i a_i                                                  over the workers in the mean m
        q_i = (loss((S m - a_i x_i) / (S - a_i)) - loss(m)) (S - a_i) / a_i / loss(m)      if i is in the mean
              (loss(m) - loss((S m + a_i x_i) / (S + a_i))) (S + a_i) / a_i / loss(m)      if not

    Without worker i the mean moves by the fraction a_i / (S - a_i) of its distance from x_i. The last factor makes
    workers of different weights comparable: q is what the loss would gain by the whole distance, relative to the
    loss of the mean. Collective: a gather of two numbers and, with `audit`, a permute of P.

    Args:
        x: this worker's vector.
        mean: m.
        included: who is in it, bool [W].
        roll: the workers' weights a_i.
        probe: of a vector [P].
        comm: the group.
        audit: each rank judges the next one instead of itself.
    """
    judged = (comm.rank + 1) % comm.size if audit else comm.rank
    x = comm.sent(x)
    if audit:
        x = comm.permute(x, [(rank + 1) % comm.size for rank in range(comm.size)])
    total = sum(roll.weight(rank) for rank in range(comm.size) if included[rank])
    weight, q, loss = roll.weight(judged), 0.0, probe(mean)
    if included[judged] and 0 < weight < total:
        rest = total - weight
        q = (probe((total * mean - weight * x) / rest) - loss) * (rest / weight) / loss
    elif weight and not included[judged]:
        more = total + weight
        q = (loss - probe((total * mean + weight * x) / more)) * (more / weight) / loss
    rows = comm.gather(torch.tensor([q, loss], dtype=torch.float64))
    if audit:
        rows = rows.roll(1, 0)
    return trust.checked(rows[:, 0], rows[:, 1]), float(rows[:, 1].median())


def common_loss(x: Tensor, probe: Probe, comm: Comm) -> float:
    """Return the loss at an x that is common to all ranks: the same on all, whatever their rounding."""
    return float(comm.gather(torch.tensor(probe(x), dtype=torch.float64)).median())


def slowest(cost: float, comm: Comm) -> float:
    """Return the largest of the ranks' costs of a probe."""
    return float(comm.gather(torch.tensor(cost, dtype=torch.float64)).max())
