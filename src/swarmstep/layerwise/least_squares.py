"""One layer: least squares under a limit, over examples that stay where they are.

::

    minimize  sum_m |T_m - Y_m O'|^2   over O [Q, n], with Y_m [J_m, n] and T_m [J_m, Q] of worker m

of which worker m knows G_m = Y_m' Y_m and C_m = T_m' Y_m. In closed form, from the sums G and C, or by consensus
ADMM, which sends neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from swarmstep.comm.base import Comm

LOOK_EVERY = 10  # iterations between two looks at all workers' residuals
RELAXATION = 1.8  # of the iterations, between 0 and 2; 1 is none
BALANCE = 2.0  # ratio of the two residuals from which on mu changes, by this factor
TINY = 1e-300


class Limit(Protocol):
    """What keeps O small."""

    def multiplier(self, values: Tensor, squares: Tensor) -> float:
        """Return lam >= 0, for which O = C (G + lam I)^-1 is the solution.

        Args:
            values: the eigenvalues of G [n].
            squares: [n], the squared norm of C times each eigenvector.
        """
        ...

    def nearest(self, mean: Tensor, mu: float, size: int) -> Tensor:
        """Return the Z that minimizes the limit's penalty + size |Z - mean|^2 / mu."""
        ...


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Adds lam |O|^2 to the cost."""

    lam: float

    def multiplier(self, values: Tensor, squares: Tensor) -> float:
        return self.lam

    def nearest(self, mean: Tensor, mu: float, size: int) -> Tensor:
        return mean / (1 + self.lam * mu / size)


@dataclasses.dataclass(frozen=True)
class Ball:
    """Asks for |O| <= radius (Frobenius)."""

    radius: float

    def multiplier(self, values: Tensor, squares: Tensor) -> float:
        def norm(lam: float) -> float:
            return float((squares / (values + lam).square()).sum().sqrt())

        if norm(0.0) <= self.radius:
            return 0.0
        low, high = 0.0, float(squares.sum().sqrt()) / self.radius
        while low < (middle := (low + high) / 2) < high:  # until two neighbouring numbers
            low, high = (middle, high) if norm(middle) > self.radius else (low, middle)
        return high

    def nearest(self, mean: Tensor, mu: float, size: int) -> Tensor:
        return mean * min(1.0, self.radius / max(float(mean.norm()), TINY))


class Solution(NamedTuple):
    """O [Q, n], and how it was found.

    `iterations`: of ADMM, 0 in closed form; `residual`: the larger of the two relative residuals at the end.
    """

    output: Tensor
    iterations: int = 0
    residual: float = 0.0


def closed_form(gram: Tensor, cross: Tensor, limit: Limit) -> Tensor:
    """Return O = C (G + lam I)^-1, with the least lam that the limit asks for; the shortest O of several.

    Args:
        gram: G, the sum of all workers' [n, n], float64.
        cross: C, the sum of all workers' [Q, n], float64.
        limit: on O.
    """
    values, vectors = torch.linalg.eigh(gram)
    known = values > values[-1] * len(values) * torch.finfo(values.dtype).eps  # the others are 0 but for rounding
    values, vectors = values[known], vectors[:, known]
    along = cross @ vectors
    lam = limit.multiplier(values, along.square().sum(0)) if len(values) else 0.0
    return (along / (values + lam)) @ vectors.T


def exact(gram: Tensor, cross: Tensor, limit: Limit, comm: Comm) -> Solution:
    """Return the closed form from the sum of all workers' G_m and C_m: the same bits on all ranks. Collective.

    Sends n(n+1)/2 + Q n numbers in one `mean`, and the Q n of the solution, which rank 0 computes.
    """
    n = len(gram)
    rows, columns = torch.triu_indices(n, n)
    sums = comm.mean(torch.cat([gram[rows, columns], cross.reshape(-1)]))[0] * comm.size
    output = torch.zeros_like(cross)
    if comm.rank == 0:
        upper = torch.zeros_like(gram)
        upper[rows, columns] = sums[: len(rows)]
        total = upper + upper.triu(1).T
        output = closed_form(total, sums[len(rows) :].view_as(cross), limit)
    return Solution(comm.broadcast(output, 0))


@dataclasses.dataclass(frozen=True)
class Admm:
    """Consensus ADMM.

    ::

        O_m = (C_m + (Z - L_m) / mu) (G_m + I / mu)^-1
        Z   = nearest(mean_m(O_m + L_m))        the only thing that is sent: Q n numbers
        L_m = L_m + O_m - Z                     L_m and Z are 0 at first

    In the last two lines O_m is a O_m + (1 - a) Z with a = 1.8 (over-relaxation), or a = 1 if mu is given. If
    not, mu starts at the inverse of the mean eigenvalue of all G_m, and is doubled or halved where one of the
    residuals |O_m - Z| and |Z - last Z|, each relative to what it belongs to, is more than twice the other. All
    ranks look at these every 10 iterations, by a gather of 40 bytes, and so stop together.

    Args:
        iterations: at most.
        tolerance: stops where both residuals are at most this; 0: takes all iterations.
        mu: above 0; 0: found, as above.
    """

    iterations: int
    tolerance: float
    mu: float

    def solve(
        self, gram: Tensor, cross: Tensor, limit: Limit, comm: Comm, average: Callable[[Tensor], Tensor]
    ) -> Solution:
        """Return Z, on each rank its own, equal to those of the others as far as `average` is exact. Collective.

        Args:
            gram: this worker's G_m [n, n], float64.
            cross: this worker's C_m [Q, n], float64.
            limit: on Z.
            comm: the group.
            average: returns the mean of all ranks' [Q, n]; collective.
        """
        mu = self.mu or 1 / max(float(comm.gather(gram.trace()).mean()) / len(gram), TINY)
        relaxation = 1.0 if self.mu else RELAXATION
        inverse, z, dual = _inverse(gram, mu), torch.zeros_like(cross), torch.zeros_like(cross)
        iteration, residual = 0, float("inf")
        while iteration < self.iterations and residual > self.tolerance:
            iteration += 1
            own = (cross + (z - dual) / mu) @ inverse
            relaxed = own.mul(relaxation).add_(z, alpha=1 - relaxation)
            before, z = z, limit.nearest(average(relaxed + dual), mu, comm.size)
            dual += relaxed - z
            if iteration % LOOK_EVERY == 0 or iteration == self.iterations:
                primal, change = _residuals(own, z, before, dual, comm)
                residual = max(primal, change)
                factor = BALANCE if change > BALANCE * primal else 1 / BALANCE if primal > BALANCE * change else 1
                if not self.mu and factor != 1 and residual > self.tolerance:
                    mu, dual = mu * factor, dual * factor
                    inverse = _inverse(gram, mu)
        return Solution(z, iteration, residual)


def _inverse(gram: Tensor, mu: float) -> Tensor:
    shifted = gram + torch.eye(len(gram), dtype=gram.dtype) / mu
    return torch.cholesky_inverse(torch.linalg.cholesky(shifted))


def _residuals(own: Tensor, z: Tensor, before: Tensor, dual: Tensor, comm: Comm) -> tuple[float, float]:
    """Return how far the workers are from agreeing, and Z from standing still: relative, the same on all ranks."""
    parts = (own - z, z - before, own, z, dual)
    squares = comm.gather(torch.stack([part.square().sum() for part in parts])).sum(0)
    apart, moved, outputs, agreed, duals = squares.sqrt().clamp_min(TINY).tolist()
    return apart / max(outputs, agreed), moved / duals
