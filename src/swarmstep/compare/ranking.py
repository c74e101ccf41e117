"""Who is ahead, and whether the seeds suffice to say so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from swarmstep.compare.statistics import Estimate, estimate, paired

SEEDS = 3  # fewer say nothing about how far chance reaches
BEST = "best"
CLOSE = "not distinguishable from the best"


class Entry(NamedTuple):
    """What is ranked: seed -> score, the lower the better; or why it takes no part.

    `resolution` is how exactly a score is known, besides what chance does.
    """

    scores: Mapping[int, float]
    refused: str = ""
    resolution: float = 0.0


class Standing(NamedTuple):
    """A rank, 1 for the best, None for none; and the verdict in words."""

    rank: int | None
    verdict: str


def standings(entries: Sequence[Entry], unit: str = "") -> list[Standing]:
    """Return the standing of each entry.

    The best has the lowest mean. Each other is compared with it seed by seed: where the 95 % interval of the
    paired difference holds 0, or anything below the resolution, both are of rank 1; else it is behind, and its
    rank is its place by mean. The intervals are each for one comparison: among twenty that are no worse than the
    best one will seem so.

    Args:
        entries: to rank; those with fewer than 3 seeds, or scores that are not finite, are refused.
        unit: of the scores, for the verdicts.
    """
    refused = [_refusal(entry) for entry in entries]
    means = [estimate(list(entry.scores.values())).mean for entry in entries]
    ranked = sorted((i for i in range(len(entries)) if not refused[i]), key=lambda i: means[i])
    found = [Standing(None, f"not ranked: {why}") for why in refused]
    if not ranked:
        return found
    best = entries[ranked[0]].scores
    gaps = {i: paired(best, entries[i].scores) for i in ranked[1:]}
    known = {i: max(entries[ranked[0]].resolution, entries[i].resolution) for i in gaps if gaps[i].count >= SEEDS}
    close = [i for i in known if gaps[i].low <= known[i]]
    behind = [i for i in known if gaps[i].low > known[i]]
    found[ranked[0]] = Standing(1, BEST)
    for i in close:
        found[i] = Standing(1, CLOSE)
    for i in behind:
        place = 2 + len(close) + sum(means[other] < means[i] for other in behind)
        found[i] = Standing(place, f"behind by {spoken(gaps[i])} {unit}".rstrip())
    for i in gaps.keys() - {*close, *behind}:
        found[i] = Standing(None, f"not ranked: {_seeds(gaps[i].count)} in common with the best")
    return found


def _refusal(entry: Entry) -> str:
    if entry.refused:
        return entry.refused
    if len(entry.scores) < SEEDS:
        return _seeds(len(entry.scores))
    return "" if all(math.isfinite(score) for score in entry.scores.values()) else "a seed without a finite value"


def _seeds(count: int) -> str:
    return f"{count} seed" + "s" * (count != 1)


def spoken(gap: Estimate) -> str:
    """Return a mean and the half width of its interval, to two digits of the latter: "0.012 ± 0.004"."""
    half = (gap.high - gap.low) / 2
    if half <= 1e-9 * abs(gap.mean):  # all seeds alike, as steps may be
        return f"{gap.mean:.6g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{gap.mean:.{digits}f} ± {half:.{digits}f}"
