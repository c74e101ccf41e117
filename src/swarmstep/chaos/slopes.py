"""The slope that several series have in common, and how sure one can be of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from swarmstep.compare.statistics import quantile

Series = Sequence[tuple[float, float]]  # (time, value)
BLOCKS = 12  # into which a single series is cut


class Slope(NamedTuple):
    """A common slope and its 95 % interval, per unit of time; of how many series it was taken."""

    slope: float
    low: float
    high: float
    lives: int


def slope_of(lives: Sequence[Series]) -> Slope | None:
    """Return the slope that series have in common, each of which has a level of its own; None for too few values.

    The slope is that of least squares with an intercept for each series. Samples that follow each other are alike,
    and an interval that took them for independent would be much too narrow. So it comes from the spread of the
    series' own slopes b about the common one, which is their mean with the weights w = sum (t - mean t)^2:

        variance = sum w^2 (b - mean)^2 / (W^2 - sum w^2),  W = sum w

    (the estimator that is robust within clusters, Liang and Zeger 1986, with its bias for white noise taken out),
    and Student's t with W^2 / sum w^2 - 1 degrees of freedom, at least 1. A single series is cut into BLOCKS equal
    parts of time instead. Their means are taken for independent, and the interval is that of a line through them.
    """
    lives = [life for life in lives if len({time for time, _ in life}) > 1]
    if len(lives) > 1:
        return _of_many(lives)
    return _of_one(lives[0]) if lives and len(lives[0]) >= 2 * BLOCKS else None


def _of_many(lives: Sequence[Series]) -> Slope:
    fits = [_fit(life) for life in lives]
    weights, slopes = np.array([fit[0] for fit in fits]), np.array([fit[1] for fit in fits])
    total, squares = float(weights.sum()), float((weights**2).sum())
    mean = float(weights @ slopes) / total
    spread = float(((weights * (slopes - mean)) ** 2).sum())
    freedom = max(1, round(total**2 / squares - 1))
    return _slope(mean, math.sqrt(spread / max(total**2 - squares, 1e-12 * total**2)), freedom, len(lives))


def _of_one(life: Series) -> Slope:
    values = np.array(life)
    edges = np.linspace(values[0, 0], values[-1, 0], BLOCKS + 1)
    places = np.clip(np.searchsorted(edges, values[:, 0], side="right") - 1, 0, BLOCKS - 1)
    means = np.array([values[places == place].mean(axis=0) for place in sorted({*places.tolist()})])
    weight, slope, residual = _fit([(time, value) for time, value in means.tolist()])
    freedom = max(1, len(means) - 2)
    return _slope(slope, math.sqrt(residual / freedom / weight), freedom, 1)


def _fit(life: Series) -> tuple[float, float, float]:
    """Return the sum of squares of the times about their mean, the slope, and that of the residuals."""
    times, values = np.array(life).T
    times, values = times - times.mean(), values - values.mean()
    weight = float(times @ times)
    slope = float(times @ values) / weight
    return weight, slope, float(((values - slope * times) ** 2).sum())


def _slope(slope: float, error: float, freedom: int, lives: int) -> Slope:
    half = quantile(freedom) * error
    return Slope(slope, slope - half, slope + half, lives)
