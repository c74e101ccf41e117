"""Means over seeds and how far to trust them: 95 % intervals by Student's t."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval; `low` and `high` are NaN for fewer than two seeds."""

    mean: float
    low: float
    high: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count, which nobody calls


def within(angle: float, freedom: int) -> float:
    """Return the probability that |T| < sqrt(freedom) tan(angle), for T of Student's t distribution.

    The finite sums of Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.

    Args:
        angle: 0 to pi / 2.
        freedom: degrees of freedom, at least 1.
    """
    odd = freedom % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    return (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total


@functools.cache
def quantile(freedom: int) -> float:
    """Return the t that a variable of Student's t distribution exceeds in size with probability 5 %.

    Args:
        freedom: degrees of freedom, at least 1: one less than the number of seeds.
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if within(middle, freedom) < CONFIDENCE else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and its 95 % interval; all NaN where a value is not finite or there is none."""
    count = len(values)
    if not count or not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, math.nan, count)
    mean = float(np.mean(values))
    if count == 1:
        return Estimate(mean, math.nan, math.nan, count)
    half = quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Return the estimate of b - a over the seeds that both have: what all methods find hard cancels out.

    Args:
        a, b: seed -> value.
    """
    return estimate([b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())])
