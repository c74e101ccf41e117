"""What the swarm loses without each worker, measured on a probe batch that is the same for all.

A probe is a function of a vector [P]. Its value, the losses [n] of n examples, may differ by rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.signal import Roll
from swarmstep.strategies.parts import trust

Probe = Callable[[Tensor], Tensor]
ALARM = 10.0  # usual outcomes: a harm that may have made a round a step back


def leave_one_out(
    x: Tensor, mean: Tensor, included: Tensor, roll: Roll, probe: Probe, comm: Comm, *, audit: bool
) -> trust.Outcomes:
    """Return what the swarm loses without each worker.

    ::

        S   = sum_i a_i                                                  over the workers in the mean m
        q_i = (loss((S m - a_i x_i) / (S - a_i)) - loss(m)) (S - a_i) / a_i      if i is in the mean
              (loss(m) - loss((S m + a_i x_i) / (S + a_i))) (S + a_i) / a_i      if not

    Without worker i the mean moves by the fraction a_i / (S - a_i) of its distance from x_i. The last factor makes
    workers of different weights comparable: q is what the loss would gain by the whole distance. Only differences
    of losses enter, each of the same example, so that a constant added to the loss changes nothing. The loss is
    the mean over the examples; for its noise the examples come in groups, with q_in of example n::

        g_ij = sum_n (q_in - q_i) / N          over the examples n of group j, of N in all

    Collective: a gather of 3 + GROUPS numbers and, with `audit`, a permute of P.

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
    weight, losses, factor = roll.weight(judged), probe(mean), 1.0
    change = torch.zeros_like(losses)  # of each example's loss, without the judged worker
    if included[judged] and 0 < weight < total:
        rest = total - weight
        change, factor = probe((total * mean - weight * x) / rest) - losses, rest / weight
    elif weight and not included[judged]:
        more = total + weight
        change, factor = losses - probe((total * mean + weight * x) / more), more / weight
    lowers = -change.mean()
    apart = (change + lowers).div_(len(change)).tensor_split(trust.GROUPS)
    groups = torch.stack([group.sum() for group in apart])
    rows = comm.gather(torch.cat([torch.stack([-lowers * factor, losses.mean(), lowers]), groups * factor]))
    if audit:
        rows = rows.roll(1, 0)
    q, base, lowers, groups = rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3:]
    return trust.Outcomes(trust.checked(q, base), groups, lowers, float(base.median()))


def suspects(
    measured: trust.Outcomes, usual: float, margin: float, anchor: Tensor, probe: Probe, comm: Comm
) -> tuple[Tensor, int]:
    """Return who may have made this round a step back, bool [W], and how many probes it took to find out.

    A worker whose harm is far beyond what is usual and beyond the probe's noise, and as large as the whole step
    back. Nothing is measured where nobody's is. Collective.

    Args:
        measured: what `leave_one_out` returned.
        usual: a typical outcome of the last test of a round that was no step back; inf if there was none.
        margin: in standard errors of q.
        anchor: the weights before the round, common to all ranks.
        probe: of a vector [P].
        comm: the group.
    """
    q, noise = measured.q, measured.groups.square().sum(1).sqrt().nan_to_num(0.0, 0.0)
    suspected = (q < 0) & (q <= -ALARM * usual) & (q <= -margin * noise)
    if not suspected.any():
        return suspected, 0
    before = comm.gather(probe(anchor).mean()).median()
    back = measured.loss - float(before)
    return suspected & (back > 0) & (q <= -back), 1


def slowest(cost: float, comm: Comm) -> float:
    """Return the largest of the ranks' costs of a probe."""
    return float(comm.gather(torch.tensor(cost, dtype=torch.float64)).max())
