"""Who talks to whom, and how all learn the mean of all: mixing with neighbours by a doubly stochastic matrix."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.strategies.base import check_choice

MIXINGS = ("finite", "repeated")
EXACT = 1e-13  # the largest share of one worker's value by which another may still miss the mean


@dataclasses.dataclass(frozen=True)
class Graph(Checked):
    """An undirected graph of W workers.

    ::

        h_ij = 1 / (1 + max(d_i, d_j))  for neighbours i, j with degrees d;  h_ii = 1 - sum_j h_ij
        a mixing:  x_i = sum_j h_ij x_j

    H is symmetric and doubly stochastic, so that a mixing keeps the mean of all (the weights are those of
    Metropolis and Hastings). Mixing again and again leads to the mean.

    Args:
        size: W, at least 1.
        edges: pairs of neighbours, each once, in either order.
        connected: whether each must be reached from each; a graph that is another one in each round need not be.

    Raises:
        UsageError: an edge is none of two different workers, comes twice, or some worker cannot be reached.
    """

    size: int
    edges: tuple[tuple[int, int], ...]
    connected: bool = True

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
        if self.connected and (missing := {*range(self.size)} - reached):
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

    def row(self, rank: int, present: Sequence[bool]) -> list[float]:
        """Return how much each worker counts on this rank, [W], where not all take part; the sum is 1.

        The share of one that does not take part goes to the worker itself, so that the mean of the others stays.
        One that does not take part has the weighted mean of its neighbours that do, and itself if there is none.
        """
        row = [h if here else 0.0 for h, here in zip(self.weights[rank].tolist(), present, strict=True)]
        if present[rank]:
            row[rank] += 1.0 - sum(row)
        elif total := sum(row):
            row = [h / total for h in row]
        else:
            row[rank] = 1.0
        return row

    def mix(self, x: Tensor, comm: Comm, present: Sequence[bool] = ()) -> Tensor:
        """Return sum_j h_ij x_j on rank i; x is of any shape. Collective.

        In a complete graph it is one `mean`, of those that take part.

        Args:
            x: this rank's; what those that do not take part give does not count.
            comm: of the graph's workers.
            present: which take part, [W]; empty: all.
        """
        present = present or [True] * self.size
        if self.complete:
            return comm.mean(x, float(present[comm.rank]))[0]
        row = self.row(comm.rank, present)
        mixed = row[comm.rank] * x if row[comm.rank] else torch.zeros_like(x)
        for route in self.routes:
            received, source = comm.permute(x, route), route[comm.rank]
            if source != comm.rank and row[source]:
                mixed.add_(received, alpha=row[source])
        return mixed

    def average(self, x: Tensor, comm: Comm, mixing: str = "finite") -> Tensor:
        """Return the mean of all ranks' x, float64, to about 1e-13. Collective.

        In a complete graph this is one mixing. Elsewhere each of `shifts(mixing)` is one.
        """
        if self.complete:
            return self.mix(x, comm)
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
