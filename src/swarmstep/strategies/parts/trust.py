"""Whom the swarm trusts: a sequential test of what it loses without each worker.

Everything here follows from what all ranks know, so that they reach the same verdict without further
communication.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from swarmstep.signal import Roll

TRUSTED, HARMFUL, CONTRADICTING, NOT_FINITE, WILD, VETOED = range(6)
REASONS = (
    "trusted",
    "the probe's loss is lower without it",
    "its probe contradicts the others'",
    "its weights are not finite",
    "its step is far longer than the others'",
    "with it, this round would have been a step back",
)
PRIOR = 1.0  # standard deviation assumed of a test's outcome before there are tests: three that agree prove little
MOST = 3.0  # a test counts at most as much as this many typical outcomes
ROUNDING = 1e-5  # of a loss: equal weights may differ by so much between machines
FIRST = 3  # a standing changes from the third test on; until then every round tests
GROUPS = 16  # of the probe's examples, in their order: they tell its error to a fifth, and are little to send


class Outcomes(NamedTuple):
    """What a test has measured, float64, the same on all ranks."""

    q: Tensor  # [W], what the loss gains by the whole step of a worker; -inf: its probe contradicts the others'
    groups: Tensor  # g [W, GROUPS]: what each group of examples adds to q beyond its share; 0 where nobody knows
    lowers: Tensor  # [W]: what leaving the worker out lowers the loss by
    loss: float  # of the mean


class Verdict(NamedTuple):
    """What the tests have shown so far, each field [W] unless it says otherwise."""

    effect: Tensor  # e: the mean outcome, in typical outcomes; below 0 the swarm is better without the worker
    variance: Tensor  # of an outcome
    groups: Tensor  # h [W, GROUPS]: the mean of g, in typical outcomes
    lowers: Tensor  # by what fraction leaving the worker out lowers the loss; the mean while it was trusted
    standing: Tensor  # TRUSTED, HARMFUL or CONTRADICTING
    tests: int  # t


def stretch(roll: Roll) -> Tensor:
    """Return how long each worker's step is, [W] in lower medians of those present; 0 where that is 0."""
    lengths = roll.reports[:, 0].sqrt()
    middle = float(lengths[roll.present].median()) if roll.present.any() else 0.0
    return torch.where(roll.present, lengths / middle, 0.0) if middle else torch.zeros_like(lengths)


def glance(roll: Roll, gate: float) -> Tensor:
    """Return who is left out of this round alone, [W]: NOT_FINITE, WILD (longer than `gate`), or TRUSTED."""
    now = torch.where(stretch(roll) > gate, WILD, TRUSTED)
    now[roll.losses.isnan()] = NOT_FINITE
    return now


def checked(q: Tensor, base: Tensor) -> Tensor:
    """Return q [W], finite, or -inf for a worker that measured another loss of the same weights.

    It did if its loss is further from the others' than a typical outcome. All are NaN if the test is void.

    Args:
        q: as measured; may hold NaN or infinity.
        base: [W], the loss of the consensus as each worker measured it; equal but for rounding.
    """
    middle = base.median()
    if not math.isfinite(middle):
        return torch.full_like(q, math.nan)
    worst = torch.finfo(q.dtype).max
    q = q.nan_to_num(nan=-worst, posinf=worst, neginf=-worst)
    allowed = max(typical(q), ROUNDING * abs(float(middle)))
    return torch.where((base - middle).abs() <= allowed, q, -math.inf)


def typical(q: Tensor) -> float:
    """Return a typical outcome of a test: the lower median |q| of the workers that agree on the loss."""
    return float(q[q > -math.inf].abs().median())


def judge(before: Verdict, measured: Outcomes, present: Tensor, memory: float, margin: float) -> Verdict:
    """Return the verdict after one more test.

    ::

        r = min(1 / typical |q|, 3 / |q|)      outcomes shrink as training goes on; their pattern does not
        b = min(beta, 1 - 1/t) ; d = r q - e ; e += (1-b) d ; var = b (var + (1-b) d d)
        h += (1-b) (r g - h)
        se = sqrt((median(var) + PRIOR^2 / t) / min(t, (1+beta)/(1-beta)) + sum_j h_ij^2)
        distrusted when e_i < -k se_i, trusted again when e_i >= se_i, from the third test on;
        the best ceil(W/2) are always trusted

    Medians are lower medians. The first term of se is how much the outcomes differ from test to test, the second
    how much the examples of the probe differ in what they say of worker i over all the tests: the same examples
    come again, so that their error does not average out.

    Args:
        before: the verdict so far.
        measured: from `leave_one_out`.
        present: who takes part, bool [W]; the others' figures stay.
        memory: beta.
        margin: k.
    """
    q = measured.q
    if q.isnan().any():
        return before
    t = before.tests + 1
    b = min(memory, 1.0 - 1.0 / t)
    contradicting = q == -math.inf
    tiny = torch.finfo(q.dtype).tiny
    z = (q / max(typical(q), tiny)).clamp(-MOST, MOST)
    share = (MOST / q.abs()).clamp(max=1.0 / max(typical(q), tiny))  # r; 0 for an outcome of -inf
    d = torch.where(present, z - before.effect, 0.0)
    effect = before.effect + (1.0 - b) * d
    variance = b * (before.variance + (1.0 - b) * d * d)
    lowered = (measured.lowers / max(abs(measured.loss), tiny)).nan_to_num()
    counts = present & (before.standing == TRUSTED)
    lowers = before.lowers + (1.0 - b) * torch.where(counts, lowered - before.lowers, 0.0)
    beyond = (share[:, None] * measured.groups).nan_to_num(0.0).clamp(-MOST, MOST) - before.groups
    groups = before.groups + (1.0 - b) * torch.where(present[:, None], beyond, 0.0)
    among = (float(variance.median()) + PRIOR**2 / t) / min(t, (1.0 + memory) / (1.0 - memory))
    error = (among + groups.square().sum(1)).sqrt()
    if t < FIRST:
        return Verdict(effect, variance, groups, lowers, before.standing, t)
    out = (before.standing == HARMFUL) | (before.standing == CONTRADICTING)
    good = torch.where(out, effect >= error, effect >= -margin * error)
    best = effect.argsort(descending=True, stable=True)[: math.ceil(len(effect) / 2)]
    good[best] = True
    standing = torch.where(good, TRUSTED, torch.where(contradicting, CONTRADICTING, HARMFUL))
    return Verdict(effect, variance, groups, lowers, standing, t)


def veto(standing: Tensor, passing: Tensor, suspected: Tensor) -> Tensor:
    """Return `passing` without the suspects, unless that would leave less than half of the workers."""
    now = torch.where(suspected & (passing == TRUSTED), VETOED, passing)
    left = int(((now == TRUSTED) & (standing == TRUSTED)).sum())
    return now if left >= math.ceil(len(standing) / 2) else passing


def explain(standing: int, lowers: float) -> str:
    """Return why a worker is left out, in words; `lowers` as in `Verdict`."""
    if standing != HARMFUL:
        return REASONS[standing]
    return f"leaving it out lowers the probe's loss by {100.0 * lowers:.2g} %"
