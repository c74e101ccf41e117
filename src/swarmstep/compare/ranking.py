"""Ranks methods by paired comparison, and says whether there are enough seeds to do so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from swarmstep.compare.statistics import Estimate, differences, estimate, paired, seeds_to_tell

MIN_SEEDS = 3  # fewer say nothing about chance
BEST = "best"
CLOSE = "not distinguishable from the best"


class Entry(NamedTuple):
    """What is ranked: seed -> score, lower is better; or the reason why it is not.

    Scores that differ by less than `resolution` count as equal.
    """

    scores: Mapping[int, float]
    refused: str = ""
    resolution: float = 0.0


class Standing(NamedTuple):
    """A rank, 1 for the best and None for unranked entries, and the verdict."""

    rank: int | None
    verdict: str


def standings(entries: Sequence[Entry], unit: str = "") -> list[Standing]:
    """Return the standing of each entry.

    The best has the lowest mean. Every other entry is compared with it seed by seed: if the 95 % interval of the
    paired difference includes 0, or anything below the resolution, it shares rank 1; otherwise it is behind and
    its rank is its place by mean. Intervals are not corrected for multiple comparisons: among twenty entries that
    are as good as the best, one will seem worse.

    Args:
        entries: to rank; those with fewer than 3 seeds, or with scores that are not finite, are refused.
        unit: of the scores, for the verdicts.
    """
    refused = [_refusal(entry) for entry in entries]
    means = [estimate(list(entry.scores.values())).mean for entry in entries]
    ranked = sorted((i for i in range(len(entries)) if not refused[i]), key=lambda i: means[i])
    result = [Standing(None, f"not ranked: {reason}") for reason in refused]
    if not ranked:
        return result
    best = entries[ranked[0]]
    gaps = {i: paired(best.scores, entries[i].scores) for i in ranked[1:]}
    resolutions = {i: max(best.resolution, entries[i].resolution) for i in gaps if gaps[i].count >= MIN_SEEDS}
    close = [i for i in resolutions if gaps[i].low <= resolutions[i]]
    behind = [i for i in resolutions if gaps[i].low > resolutions[i]]
    result[ranked[0]] = Standing(1, BEST)
    for i in close:
        result[i] = Standing(1, CLOSE)
    for i in behind:
        rank = 2 + len(close) + sum(means[other] < means[i] for other in behind)
        result[i] = Standing(rank, f"behind by {formatted(gaps[i])} {unit}".rstrip())
    for i in gaps.keys() - {*close, *behind}:
        result[i] = Standing(None, f"not ranked: {_seeds(gaps[i].count)} in common with the best")
    return result


def seeds_needed(entries: Sequence[Entry], best: int, difference: Callable[[float], float]) -> list[int | None]:
    """Return for each entry how many seeds would tell a difference of interest between it and the best.

    The spread is that of the differences by seed. On few seeds it is rough itself: that of 3 seeds may be twice
    the true one, or a sixth of it. None for the best itself, with fewer than 3 seeds in common, and for a
    difference within the resolution, which no number of seeds would tell.

    Args:
        entries: to compare; the reason why one is not ranked does not matter.
        best: index of the entry that all others are compared with.
        difference: of interest, from the mean score of the best.
    """
    wanted = difference(estimate(list(entries[best].scores.values())).mean)
    needed: list[int | None] = []
    for i, entry in enumerate(entries):
        gaps = differences(entries[best].scores, entry.scores)
        known = i != best and len(gaps) >= MIN_SEEDS and all(map(math.isfinite, gaps))
        known = known and wanted > max(entry.resolution, entries[best].resolution)
        needed.append(max(MIN_SEEDS, seeds_to_tell(wanted, statistics.stdev(gaps))) if known else None)
    return needed


def _refusal(entry: Entry) -> str:
    if entry.refused:
        return entry.refused
    if len(entry.scores) < MIN_SEEDS:
        return _seeds(len(entry.scores))
    return "" if all(math.isfinite(score) for score in entry.scores.values()) else "a seed without a finite value"


def _seeds(count: int) -> str:
    return f"{count} seed" + "s" * (count != 1)


def formatted(gap: Estimate) -> str:
    """Return a mean and the half width of its interval, to two digits of the latter: "0.012 ± 0.004"."""
    half = (gap.high - gap.low) / 2
    if half <= 1e-9 * abs(gap.mean):  # equal for all seeds, as steps may be
        return f"{gap.mean:.6g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(half)))
    return f"{gap.mean:.{digits}f} ± {half:.{digits}f}"
