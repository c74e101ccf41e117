"""Means over seeds, their 95 % confidence intervals by Student's t, and how many seeds would tell a difference."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from swarmstep.optional_imports import library

CONFIDENCE = 0.95
POWER = 0.8

Range = Literal["any", "positive", "share"]  # all numbers; at least 0; 0 to 1


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


def estimate(values: Sequence[float], within: Range = "any") -> Estimate:
    """Return the arithmetic mean and its 95 % interval; all NaN if there is no value or one is not finite.

    The interval stays within the range. It is made where there are no bounds, on the scale of the logarithm
    ("positive") or of the logit ("share"), and brought back. There, the standard error of the mean is that of the
    values times the slope of the scale at the mean: the delta method (Casella and Berger, Statistical Inference,
    2002, section 5.5.4). Single values of exactly 0 or 1 need no exception.

    Args:
        values: one a seed.
        within: of the quantity. If a value lies outside (a loss may be negative), there are no bounds to keep.
    """
    count = len(values)
    if not count or not np.isfinite(values).all():
        return Estimate(math.nan, math.nan, math.nan, count)
    mean = float(np.mean(values))
    if count == 1:
        return Estimate(mean, math.nan, math.nan, count)
    half = quantile(count - 1) * float(np.std(values, ddof=1)) / math.sqrt(count)
    if min(values) < 0 or (within == "share" and max(values) > 1):
        within = "any"
    return Estimate(mean, *_interval(mean, half, within), count)


def _interval(mean: float, half: float, within: Range) -> tuple[float, float]:
    """Return the ends of the interval around a mean within its range; `half` is half its width without bounds."""
    if within == "any":
        return mean - half, mean + half
    slope = mean if within == "positive" else mean * (1 - mean)  # of the way back, at the mean
    if slope <= 0:  # at a bound, as are all values
        return mean, mean
    factor = math.exp(half / slope)  # for "share" of the odds
    if within == "positive":
        return mean / factor, mean * factor
    return mean / (mean + (1 - mean) * factor), mean / (mean + (1 - mean) / factor)


def differences(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """Return b - a for each seed that both have; what makes a seed hard for both cancels out.

    Args:
        a, b: seed -> value.
    """
    return [b[seed] - a[seed] for seed in sorted(a.keys() & b.keys())]


def paired(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Return the estimate of b - a over the seeds that both have."""
    return estimate(differences(a, b))


def seeds_to_tell(difference: float, spread: float) -> int:
    """Return how many seeds tell a difference from 0: with 80 % power, at 95 %, by the paired t test.

    It is the least n >= 2 with P(|T| > t) >= 0.8. t is the quantile of n - 1 degrees of freedom; T is of the
    noncentral t distribution with n - 1 degrees of freedom and noncentrality sqrt(n) * difference / spread (Cohen,
    Statistical Power Analysis, 1988, chapter 2; `power.t.test(type = "paired", strict = TRUE)` of R).

    Args:
        difference: of interest, above 0.
        spread: standard deviation of the paired differences, finite and at least 0.

    Raises:
        UsageError: SciPy is not installed.
    """
    special = library("scipy.special")
    needed = float(special.ndtri((1 + CONFIDENCE) / 2) + special.ndtri(POWER))  # if the spread were known
    count = max(2, math.floor((needed * spread / difference) ** 2))
    while _power(count, difference, spread) < POWER:
        count += 1
    return count


def _power(count: int, difference: float, spread: float) -> float:
    if count * difference**2 >= (100 * spread) ** 2:  # beyond doubt, and beyond the range of SciPy
        return 1.0
    special, t = library("scipy.special"), quantile(count - 1)
    shift = math.sqrt(count) * difference / spread
    return float(1 - special.nctdtr(count - 1, shift, t) + special.nctdtr(count - 1, shift, -t))
