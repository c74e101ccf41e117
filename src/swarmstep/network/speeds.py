"""How long a job takes: the workers' speeds, their jitter, and intervals in which one is slower."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections import deque
from typing import Any, NamedTuple, final

import torch

from swarmstep.arguments import Checked
from swarmstep.errors import UsageError
from swarmstep.seeding import generator


class Disturbance(NamedTuple):
    """An interval in which a worker needs `factor` times as long; those that overlap multiply.

    Args:
        worker: whose, 0 to W-1.
        start: seconds, at least 0.
        end: seconds, after the start, finite.
        factor: above 0; infinite: the worker stands still, and goes on with its job at the end.
    """

    worker: int
    start: float
    end: float
    factor: float


@final
@dataclasses.dataclass(frozen=True)
class Speeds(Checked):
    """The seconds of every job, as a function of the arguments: nothing is remembered.

    ::

        left = work * seconds[worker] * (1 + jitter u)       u uniform in -1..1 from (seed, worker, number)
        left falls by 1 a second, by 1 / factor in a disturbance; the job has ended when it is 0

    Args:
        seconds: of each worker for one unit of work, above 0.
        jitter: 0 to below 1.
        disturbances: each of (worker, start, end, factor).
        seed: of the jitter.

    Raises:
        UsageError: an argument is out of its range.
    """

    seconds: tuple[float, ...]
    jitter: float = 0.0
    disturbances: tuple[Disturbance, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.seconds or not all(0 < s < math.inf for s in self.seconds) or not 0 <= self.jitter < 1:
            raise UsageError(
                f"expected seconds above 0, jitter 0 to below 1; found {self.seconds}, jitter {self.jitter}"
            )
        for found in self.disturbances:
            worker, start, end, factor = found
            if not (worker in range(len(self.seconds)) and 0 <= start < end < math.inf and factor > 0):
                raise UsageError(
                    f"disturbance: expected worker 0 to {len(self.seconds) - 1}, 0 <= start < end < inf, factor "
                    f"above 0; found {tuple(found)}"
                )

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments as plain values, as a checkpoint keeps and compares them."""
        disturbances = [tuple(one) for one in self.disturbances]
        return {"seconds": [*self.seconds], "jitter": self.jitter, "disturbances": disturbances, "seed": self.seed}

    def duration(self, worker: int, start: float, work: float, number: int) -> float:
        """Return the seconds of a job.

        Args:
            worker: who does it.
            start: when it begins, seconds.
            work: units, above 0: local steps, say.
            number: of the worker's job, for the jitter.
        """
        left = work * self.seconds[worker]
        if self.jitter:
            source = generator(self.seed, "duration", worker, number)
            left *= 1 + self.jitter * (2 * float(torch.rand((), dtype=torch.float64, generator=source)) - 1)
        times, factors = self._pieces[worker]
        piece, taken = bisect.bisect_right(times, start) - 1, 0.0
        while piece + 1 < len(times):
            length = times[piece + 1] - start - taken
            if left * factors[piece] <= length:
                break
            left -= length / factors[piece]
            taken, piece = times[piece + 1] - start, piece + 1
        return taken + left * factors[piece]

    @functools.cached_property
    def _pieces(self) -> list[tuple[list[float], list[float]]]:
        """For each worker the times at which its factor changes, ascending from 0, and the factor from each on."""
        found: list[tuple[list[float], list[float]]] = []
        disturbances = sorted(map(Disturbance._make, self.disturbances))
        for worker in range(len(self.seconds)):
            own = deque(one for one in disturbances if one.worker == worker)
            times = sorted({0.0, *(edge for one in own for edge in (one.start, one.end))})
            now: list[Disturbance] = []
            factors: list[float] = []
            for time in times:
                while own and own[0].start <= time:
                    now.append(own.popleft())
                now = [one for one in now if one.end > time]
                factors.append(math.prod(one.factor for one in now))
            found.append((times, factors))
        return found
