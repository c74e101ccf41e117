"""Graphs by name, those that stay and those that are others in each round."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.seeding import generator
from swarmstep.strategies.parts.graph import Graph


def ring(size: int, degree: int = 2) -> Graph:
    """Return the ring in which each of `size` workers has the degree/2 next ones on each side as neighbours.

    Raises:
        UsageError: the degree is odd, below 2, or as large as `size`.
    """
    if degree % 2 or not 2 <= degree < size:
        raise UsageError(
            f"ring:{degree}: expected an even degree from 2 to {size - 1} with {size} workers; fewer than 3 "
            "workers take complete"
        )
    edges = {(min(i, j), max(i, j)) for i in range(size) for k in range(degree // 2) for j in [(i + k + 1) % size]}
    return Graph(size, tuple(sorted(edges)))


def complete(size: int) -> Graph:
    """Return the graph of `size` workers in which all are neighbours."""
    return Graph(size, tuple((i, j) for i in range(size) for j in range(i + 1, size)))


def _by_distance(size: int, distances: Sequence[int]) -> Graph:
    """Return the graph in which workers so far from each other on a ring are neighbours."""
    ends = ((i, (i + distance) % size) for i in range(size) for distance in distances)
    return Graph(size, tuple(sorted({(min(i, j), max(i, j)) for i, j in ends if i != j})))


def exponential(size: int) -> Graph:
    """Return the graph in which workers 1, 2, 4, ... ranks apart are neighbours, at most 2 ceil(log2 W) each."""
    return _by_distance(size, [2**k for k in range((size - 1).bit_length())])


def hypercube(size: int) -> Graph:
    """Return the graph in which ranks that differ in one binary digit are neighbours, at most log2 W each."""
    digits = [2**k for k in range((size - 1).bit_length())]
    return Graph(size, tuple((i, i ^ d) for i in range(size) for d in digits if i < i ^ d < size))


def torus(size: int) -> Graph:
    """Return the grid of R x C = W workers, R <= C as near as can be, whose ends are joined; at most 4 neighbours.

    With a prime number of workers it is a ring.
    """
    rows = max(r for r in range(1, math.isqrt(size) + 1) if size % r == 0)
    columns = size // rows
    ends = (
        (r * columns + c, other)
        for r in range(rows)
        for c in range(columns)
        for other in (r * columns + (c + 1) % columns, (r + 1) % rows * columns + c)
    )
    return Graph(size, tuple(sorted({(min(i, j), max(i, j)) for i, j in ends if i != j})))


_NAMED: Mapping[str, Callable[[int], Graph]] = {
    "ring": lambda size: _by_distance(size, [1]),
    "exponential": exponential,
    "hypercube": hypercube,
    "torus": torus,
    "complete": complete,
}
PAIRS, NONE = "pairs", "none"


def _degree(spec: str) -> int | None:
    """Return the DEGREE of ``ring:DEGREE``; None of another text."""
    name, colon, degree = spec.partition(":")
    return int(degree) if name == "ring" and colon and degree.isdecimal() else None


def parse(spec: str, size: int) -> Graph:
    """Return the graph that `spec` names: of `spec_help.GRAPHS`.

    Raises:
        UsageError: another text, or a degree that does not go with `size` workers.
    """
    if spec in _NAMED:
        return _NAMED[spec](size)
    if (degree := _degree(spec)) is not None:
        return ring(size, degree)
    raise UsageError(f"unknown graph {spec!r}; expected one of {spec_help.GRAPHS}")


@functools.lru_cache(maxsize=16)
def _parsed(spec: str, size: int) -> Graph:
    degree = _degree(spec)
    return complete(size) if degree is not None and degree >= size else parse(spec, size)


def check_spec(name: str, spec: str, *, changing: bool = False) -> None:
    """Raise UsageError unless `spec` names a graph for every number of workers; a ring's degree is even.

    Args:
        name: of the argument.
        spec: its value.
        changing: whether ``pairs`` is one, too.
    """
    degree = _degree(spec)
    if spec in _NAMED or spec == NONE or (changing and spec == PAIRS) or (degree and degree % 2 == 0):
        return
    more = f"{PAIRS}, " if changing else ""
    raise UsageError(f"{name}: expected one of {NONE}, {more}{spec_help.GRAPHS}, found {spec!r}")


def graph_of_round(spec: str, size: int, seed: int, step: int) -> Graph:
    """Return the graph in which the workers mix in the round of this step.

    Args:
        spec: as of `parse`, but a ring among so few that all are neighbours is ``complete``; or ``pairs``: other
            random pairs in each round, with an odd size one is left alone; or ``none``: nobody has a neighbour.
        size: of the group.
        seed: of the run.
        step: of the round.
    """
    if spec == NONE:
        return Graph(size, (), connected=False)
    if spec != PAIRS:
        return _parsed(spec, size)
    partners = pairs(seed, step, size)
    return Graph(size, tuple((i, j) for i, j in enumerate(partners) if i < j), connected=False)


def pairs(seed: int, step: int, size: int) -> list[int]:
    """Return each rank's partner in the round of this step; with an odd size one rank is its own."""
    order = torch.randperm(size, generator=generator(seed, step, "noloco")).tolist()
    partners = list(range(size))
    for one, other in zip(order[0::2], order[1::2], strict=False):
        partners[one], partners[other] = other, one
    return partners
