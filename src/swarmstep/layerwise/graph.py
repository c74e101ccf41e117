"""Who talks to whom, and how all learn the mean of all: mixing with neighbours by a doubly stochastic matrix."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmstep import spec_help
from swarmstep.arguments import Checked
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.strategies.base import check_choice

MIXINGS = ("finite", "repeated")
EXACT = 1e-13  # the largest share of one worker's value by which another may still miss the mean


@dataclasses.dataclass(frozen=True)
class Graph(Checked):
    """An undirected graph of W workers, in which each can be reached from each.

    ::

        h_ij = 1 / (1 + max(d_i, d_j))  for neighbours i, j with degrees d;  h_ii = 1 - sum_j h_ij
        a mixing:  x_i = sum_j h_ij x_j

    H is symmetric and doubly stochastic, so that a mixing keeps the mean of all (the weights are those of
    Metropolis and Hastings). Mixing again and again leads to the mean.

    Args:
        size: W, at least 1.
        edges: pairs of neighbours, each once, in either order.

    Raises:
        UsageError: an edge is none of two different workers, comes twice, or some worker cannot be reached.
    """

    size: int
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        pairs = {frozenset(edge) for edge in self.edges}
        if self.size < 1 or len(pairs) < len(self.edges):
            raise UsageError(f"graph: expected at least 1 worker and each edge once, found {self}")
        for edge in self.edges:
            if len({*edge}) != 2 or not all(0 <= end < self.size for end in edge):
                raise UsageError(f"graph: expected edges between two of 0..{self.size - 1}, found {edge}")
        reached, new = {0}, {0}
        while new:
            new = {end for edge in self.edges if reached & {*edge} for end in edge} - reached
            reached |= new
        if missing := {*range(self.size)} - reached:
            raise UsageError(f"graph: worker {min(missing)} cannot be reached from worker 0; add edges")

    @property
    def complete(self) -> bool:
        """Whether all are neighbours."""
        return 2 * len(self.edges) == self.size * (self.size - 1)

    @functools.cached_property
    def weights(self) -> Tensor:
        """H, float64 [W, W]."""
        degrees = [0] * self.size
        for i, j in self.edges:
            degrees[i], degrees[j] = degrees[i] + 1, degrees[j] + 1
        matrix = torch.zeros(self.size, self.size, dtype=torch.float64)
        for i, j in self.edges:
            matrix[i, j] = matrix[j, i] = 1 / (1 + max(degrees[i], degrees[j]))
        return matrix + torch.diag(1 - matrix.sum(1))

    @functools.cached_property
    def routes(self) -> tuple[tuple[int, ...], ...]:
        """The edges in as many permutations of the ranks as are needed: in each, pairs of neighbours swap."""
        routes: list[list[int]] = []
        for i, j in self.edges:
            free = next((route for route in routes if route[i] == i and route[j] == j), None)
            if free is None:
                routes.append(free := [*range(self.size)])
            free[i], free[j] = j, i
        return tuple(map(tuple, routes))

    def mix(self, x: Tensor, comm: Comm) -> Tensor:
        """Return sum_j h_ij x_j on rank i; x is float64, of any shape. Collective."""
        row = self.weights[comm.rank].tolist()
        mixed = row[comm.rank] * x
        for route in self.routes:
            received, source = comm.permute(x, route), route[comm.rank]
            if source != comm.rank:
                mixed.add_(received, alpha=row[source])
        return mixed

    def average(self, x: Tensor, comm: Comm, mixing: str = "finite") -> Tensor:
        """Return the mean of all ranks' x, float64, to about 1e-13. Collective.

        In a complete graph this is one `mean`. Elsewhere each of `shifts(mixing)` is a mixing.
        """
        if self.complete:
            return comm.mean(x)[0]
        for shift in self.shifts(mixing):
            mixed = self.mix(x, comm)
            x = mixed.sub_(x, alpha=shift).div_(1 - shift) if shift else mixed
        return x

    def shifts(self, mixing: str = "finite") -> tuple[float, ...]:
        """Return the steps x <- (H x - s x) / (1 - s) that lead all workers to the mean.

        - ``repeated``: s = 0, as often as the second largest eigenvalue of H asks for: plain mixing.
        - ``finite``: each eigenvalue of H but 1, once. The product of these steps is the matrix of means: as many
          mixings are enough as H has other eigenvalues, at most W - 1, on a ring W/2. All know the graph, thus H.

        Raises:
            UsageError: another name, or ``finite`` in a graph so large that rounding spoils it.
        """
        return _shifts(self, mixing)

    def find_shifts(self, mixing: str) -> tuple[float, ...]:
        """Return `shifts`, worked out anew."""
        check_choice("mixing", mixing, MIXINGS)
        others = self._eigenvalues()
        if mixing == "repeated":
            slowest = max(map(abs, others), default=0.0)
            return (0.0,) * (math.ceil(math.log(EXACT) / math.log(slowest)) if slowest > EXACT else len(others))
        steps, found = _spread_out(others), torch.eye(self.size, dtype=torch.float64)
        for shift in steps:
            found = (self.weights @ found - shift * found) / (1 - shift)
        if float((found - 1 / self.size).abs().max()) > EXACT:
            raise UsageError(
                f"graph of {self.size} workers: mixing by eigenvalues is not exact here; take mixing=repeated"
            )
        return tuple(steps)

    def _eigenvalues(self) -> list[float]:
        """Return the different eigenvalues of H, in rising order, without the 1."""
        found: list[float] = []
        for value in torch.linalg.eigvalsh(self.weights)[:-1].tolist():
            if not found or value - found[-1] > 1e-9:
                found.append(value)
        return found


@functools.lru_cache(maxsize=16)
def _shifts(graph: Graph, mixing: str) -> tuple[float, ...]:
    """Return `Graph.shifts`, which each mean needs."""
    return graph.find_shifts(mixing)


def _spread_out(values: Sequence[float]) -> list[float]:
    """Return the values in Leja's order, each as far as can be from those before it: rounding then stays small."""
    ordered, left = list[float](), [*values]
    while left:
        chosen = max(left, key=lambda v: sum(math.log(abs(v - o)) for o in ordered) if ordered else abs(v))
        ordered.append(chosen)
        left.remove(chosen)
    return ordered


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


def parse(spec: str, size: int) -> Graph:
    """Return the graph that `spec` names: ring:DEGREE or complete.

    Raises:
        UsageError: another text, or a degree that does not go with `size` workers.
    """
    name, colon, degree = spec.partition(":")
    if spec == "complete":
        return complete(size)
    if name == "ring" and colon and degree.isdecimal():
        return ring(size, int(degree))
    raise UsageError(f"unknown graph {spec!r}; expected one of {spec_help.GRAPHS}")
