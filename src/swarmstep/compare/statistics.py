"""Means over seeds and their 95 % confidence intervals by Student's t."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from swarmstep.compare.optional_imports import library

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean over seeds and its 95 % interval; `low` and `high` are NaN with fewer than two seeds."""

    mean: float
    low: float
    high: float
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]  # tuple.count, which nobody calls


@functools.cache
def quantile(freedom: int) -> float:
    """Return the t that a variable of Student's t distribution exceeds in absolute value with probability 5 %.

    Args:
        freedom: degrees of freedom, at least 1: one less than the number of seeds.

    Raises:
        UsageError: SciPy is not installed.
    """
    return float(library("scipy.special").stdtrit(freedom, (1 + CONFIDENCE) / 2))


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and its 95 % interval; all NaN if there is no value or one is not finite."""
    count = len(values)
    if not count or not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, math.nan, count)
    mean = float(np.mean(values))
    if count == 1:
        return Estimate(mean, math.nan, math.nan, count)
    half = quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Return the estimate of b - a over the seeds that both have; what makes a seed hard for both cancels out.

    Args:
        a, b: seed -> value.
    """
    return estimate([b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())])
