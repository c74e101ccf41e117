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
    "the swarm is better without it",
    "its probe contradicts the others'",
    "its weights are not finite",
    "its step is far longer than the others'",
    "with it, this round would have been a step back",
)
PRIOR = 1.0  # standard deviation assumed of a test's outcome before there are tests: three that agree prove little
MOST = 3.0  # a test counts at most as much as this many typical outcomes
ROUNDING = 1e-5  # of a loss: equal weights may differ by so much between machines
FIRST = 3  # a standing changes from the third test on; until then every round tests


class Verdict(NamedTuple):
    """What the tests have shown so far, each field [W]."""

    effect: Tensor  # e: the mean outcome, in typical outcomes; below 0 the swarm is better without the worker
    variance: Tensor  # of an outcome
    standing: Tensor  # TRUSTED, HARMFUL or CONTRADICTING
    tests: int  # t


def glance(roll: Roll, gate: Tensor) -> Tensor:
    """Return who is left out of this round alone, [W]: NOT_FINITE, WILD, or TRUSTED.

    A step is wild if it is more than `gate` [W] times as long as the lower median of those present.
    """
    lengths = roll.reports[:, 0].sqrt()
    now = torch.full_like(lengths, TRUSTED, dtype=torch.int64)
    if roll.present.any():
        now[roll.present & (lengths > gate * lengths[roll.present].median())] = WILD
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


def judge(before: Verdict, q: Tensor, present: Tensor, memory: float, margin: float) -> Verdict:
    """Return the verdict after one more test.

    ::

        z = clamp(q / typical |q|, -3, 3)      outcomes shrink as training goes on; their pattern does not
        b = min(beta, 1 - 1/t) ; d = z - e ; e += (1-b) d ; var = b (var + (1-b) d d)
        se = sqrt((median(var) + PRIOR^2 / t) / min(t, (1+beta)/(1-beta)))
        distrusted when e_i < -k se, trusted again when e_i >= se, from the third test on;
        the best ceil(W/2) are always trusted

    Medians are lower medians.

    Args:
        before: the verdict so far.
        q: [W] from `checked`.
        present: who takes part, bool [W]; the others' figures stay.
        memory: beta.
        margin: k.
    """
    if q.isnan().any():
        return before
    t = before.tests + 1
    b = min(memory, 1.0 - 1.0 / t)
    contradicting = q == -math.inf
    z = (q / max(typical(q), torch.finfo(q.dtype).tiny)).clamp(-MOST, MOST)
    d = torch.where(present, z - before.effect, 0.0)
    effect = before.effect + (1.0 - b) * d
    variance = b * (before.variance + (1.0 - b) * d * d)
    error = math.sqrt((float(variance.median()) + PRIOR**2 / t) / min(t, (1.0 + memory) / (1.0 - memory)))
    if t < FIRST:
        return Verdict(effect, variance, before.standing, t)
    out = (before.standing == HARMFUL) | (before.standing == CONTRADICTING)
    good = torch.where(out, effect >= error, effect >= -margin * error)
    best = effect.argsort(descending=True, stable=True)[: math.ceil(len(effect) / 2)]
    good[best] = True
    standing = torch.where(good, TRUSTED, torch.where(contradicting, CONTRADICTING, HARMFUL))
    return Verdict(effect, variance, standing, t)


def veto(standing: Tensor, passing: Tensor, suspected: Tensor) -> Tensor:
    """Return `passing` without the suspects, unless that would leave less than half of the workers."""
    now = torch.where(suspected & (passing == TRUSTED), VETOED, passing)
    left = int(((now == TRUSTED) & (standing == TRUSTED)).sum())
    return now if left >= math.ceil(len(standing) / 2) else passing


def explain(standing: int, effect: float) -> str:
    """Return why a worker is left out, in words."""
    if standing == HARMFUL:
        return f"{REASONS[standing]} (its effect is {effect:.1f} times a typical worker's)"
    return REASONS[standing]
