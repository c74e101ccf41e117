"""The outer step's rate and momentum by the number of workers: the more workers, the more of both."""

from __future__ import annotations

import math
from typing import NamedTuple

FEW, MANY = 2, 16  # workers, between which we interpolate


class OuterSettings(NamedTuple):
    """Of DiLoCo's outer step.

    Args:
        lr: s.
        momentum: w.
        published: whether these are the numbers that MuLoCo's authors publish for this number of workers; else
            they are ours, between or beyond those.
    """

    lr: float
    momentum: float
    published: bool

    def __str__(self) -> str:
        source = "MuLoCo's, for rounds of 30 steps" if self.published else "ours, beside MuLoCo's for 1, 2 and 16"
        return f"lr {self.lr:g}, momentum {self.momentum:g} ({source})"


def outer_settings(workers: int) -> OuterSettings:
    """Return the outer step's settings for a number of workers, at least 1.

    1: 0.7 and 0.6; 2: 0.9 and 0.8; 16: 1.0 and 0.9, as published with MuLoCo (arXiv 2505.23725, its authors' code)
    for Muon and rounds of 30 steps. In between we go evenly by the logarithm of the number, and take 16's beyond.
    """
    if workers == 1:
        return OuterSettings(0.7, 0.6, published=True)
    share = min(1.0, math.log(workers / FEW) / math.log(MANY / FEW))
    published = workers in (FEW, MANY)
    return OuterSettings(round(0.9 + 0.1 * share, 3), round(0.8 + 0.1 * share, 3), published)
