"""The virtual clock: how long a run would have taken on a given network, from what it sent and when.

A pure model, see docs/virtual-clock.md, of workers that use this package's transport (`comm.dist`, gloo over TCP),
each on a machine of its own, joined by one switch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from swarmstep.comm.metered import Call
from swarmstep.errors import UsageError
from swarmstep.network.collective_costs import seconds_of
from swarmstep.network.link import Link
from swarmstep.network.trace import Trace
from swarmstep.seeding import mix
from swarmstep.spec_help import FAILURES, STRAGGLERS

BLOCK = 4096  # steps drawn at once: 8 MB for 256 workers
MAX_FAILURES = 7.0  # expected between two rounds; a round then takes e^7 = 1,100 attempts

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Stragglers:
    """How much longer than on average each worker takes for each step.

    Args:
        sigma: each step of each worker takes exp(sigma z - sigma^2 / 2) times as long, z standard normal: mean 1.
        slow: number of workers, the last ranks, that always take `factor` times as long.
        factor: at least 1.
    """

    sigma: float = 0.0
    slow: int = 0
    factor: float = 1.0

    def columns(self, workers: int) -> int:
        """Return the number of distinguishable workers."""
        return workers if self.sigma else 1 + (0 < self.slow < workers)

    def draw(self, steps: int, workers: int, source: np.random.Generator) -> Array:
        """Return factors [steps, columns]; workers that are always equally fast share a column."""
        if self.sigma:
            z = source.standard_normal((steps, workers))
            z *= self.sigma
            z -= self.sigma**2 / 2
            return np.exp(z, out=z)
        factors = (1.0, self.factor) if self.slow < workers else (self.factor,)
        return np.broadcast_to(np.array(factors[: self.columns(workers)]), (steps, self.columns(workers)))


@dataclass(frozen=True)
class Failures:
    """A worker fails `rate` times per hour; the group continues after a pause of `seconds`."""

    rate: float
    seconds: float


class _Round(NamedTuple):
    started: int  # step
    landed: int  # step
    seconds: float  # on the network


def parse_stragglers(spec: str | None, workers: int) -> Stragglers:
    """Return the stragglers of ``lognormal:SIGMA`` or ``slow:K:FACTOR``; for None, all workers are equally fast.

    Raises:
        UsageError: the specification is malformed, or a number is out of range.
    """
    if spec is None:
        return Stragglers()
    kind, *numbers = spec.split(":")
    try:
        if kind == "lognormal" and len(numbers) == 1 and 0 < (sigma := float(numbers[0])) <= 3:
            return Stragglers(sigma=sigma)
        if kind == "slow" and len(numbers) == 2:
            slow, factor = int(numbers[0]), float(numbers[1])
            if 1 <= slow <= workers and 1 <= factor <= 1000:
                return Stragglers(slow=slow, factor=factor)
    except ValueError:
        pass
    raise UsageError(f"stragglers {spec!r} of {workers} workers: expected {STRAGGLERS}")


def parse_failures(spec: str | None) -> Failures | None:
    """Return the failures of ``RATE:SECONDS``; for None, no worker fails.

    Raises:
        UsageError: the specification is malformed, or a number is out of range.
    """
    if spec is None:
        return None
    try:
        rate, seconds = map(float, spec.split(":"))
        if 0 < rate < math.inf and 0 <= seconds < math.inf:
            return Failures(rate, seconds)
    except ValueError:
        pass
    raise UsageError(f"failures {spec!r}: expected {FAILURES}")


@dataclass(frozen=True)
class VirtualClock:
    """Converts the trace of a run to seconds.

    Args:
        link: between each worker and the switch.
        workers: at least 1.
        compute: seconds of a local step.
        round_compute: seconds of a worker's own work in a round, without collectives and probes.
        stragglers: ``lognormal:SIGMA`` or ``slow:K:FACTOR``, see `parse_stragglers`.
        failures: ``RATE:SECONDS``, see `parse_failures`.
        seed: of stragglers and failures.

    Raises:
        UsageError: a number or a specification is invalid.
    """

    link: Link
    workers: int
    compute: float
    round_compute: float = 0.0
    stragglers: str | None = None
    failures: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UsageError(f"virtual clock: workers must be at least 1, found {self.workers}")
        for name, value in (("compute", self.compute), ("round_compute", self.round_compute)):
            if not 0 <= value < math.inf:
                raise UsageError(f"virtual clock: {name} must be seconds from 0, measured, found {value}")
        parse_stragglers(self.stragglers, self.workers)
        parse_failures(self.failures)

    def cost(self, call: Call) -> float:
        """Return the seconds from the last worker's entry into a collective to the last worker's result.

        Raises:
            DataError: the verb is unknown.
        """
        return seconds_of(call, self.link)

    def seconds(self, trace: Trace, steps: int, probe_seconds: float = 0.0) -> Array:
        """Return [steps + 1] seconds: element k is when the last worker has finished step k and its rounds.

        A round starts when the slowest worker has reached it and the network is free; its calls follow one
        another. A worker that reaches the landing step before the round has arrived waits. Rounds that would land
        after the last step land at the last step; rounds that would start after it are ignored.

        Args:
            trace: what was sent, and when.
            steps: local steps of each worker.
            probe_seconds: of all probes of a worker; spread evenly over the rounds.

        Raises:
            DataError: the trace has an unknown call.
            UsageError: failures are so frequent that rounds would practically never complete.
        """
        rounds = self._rounds(trace, steps)
        own = self.round_compute + probe_seconds / max(1, len(rounds))
        done = self._without_failures(rounds, steps, own)
        failures = parse_failures(self.failures)
        return self._with_failures(done, {round_.landed for round_ in rounds}, failures) if failures else done

    def _rounds(self, trace: Trace, steps: int) -> list[_Round]:
        costs: dict[tuple[Call, ...], float] = {}
        rounds: list[_Round] = []
        for started, landed, calls in trace:
            if calls not in costs:
                costs[calls] = sum(map(self.cost, calls))
            if started <= steps:
                rounds.append(_Round(started, min(landed, steps), costs[calls]))
        return rounds

    def _without_failures(self, rounds: Sequence[_Round], steps: int, own: float) -> Array:
        stragglers = parse_stragglers(self.stragglers, self.workers)
        source = np.random.default_rng(mix(self.seed, "stragglers"))
        starting, landing = _by_step(rounds, "started"), _by_step(rounds, "landed")
        done = np.zeros(steps + 1)
        now = np.zeros(stragglers.columns(self.workers))  # each worker's clock
        arrivals: dict[int, float] = {}  # of rounds in flight
        free_at = 0.0  # when the network is free again
        reached = 0
        for step in sorted({*range(0, steps, BLOCK), steps, *starting, *landing}):
            if step > reached:
                taken = self.compute * stragglers.draw(step - reached, self.workers, source)
                clocks = np.cumsum(taken, axis=0, out=taken)
                clocks += now
                clocks.max(axis=1, out=done[reached + 1 : step + 1])
                now, reached = clocks[-1], step
            for i in landing[step]:
                if i in arrivals:
                    now = np.maximum(now, arrivals.pop(i)) + own
            for i in starting[step]:
                free_at = max(float(now.max()), free_at) + rounds[i].seconds
                if rounds[i].landed == step:
                    now = np.full_like(now, free_at + own)
                else:
                    arrivals[i] = free_at
            done[step] = now.max()
        return done

    def _with_failures(self, done: Array, landings: Collection[int], failures: Failures) -> Array:
        """Return `done` delayed by failures: each costs the work since the last round, and the pause."""
        bounds = np.array(sorted({0, *landings, len(done) - 1}))
        intervals = np.diff(done[bounds])
        mean_gap = 3600 / (failures.rate * self.workers)  # seconds, mean
        if intervals.size and intervals.max() > MAX_FAILURES * mean_gap:
            raise UsageError(
                f"failures {self.failures!r}: expected at most {MAX_FAILURES:g} between two rounds, found one "
                f"every {mean_gap:.3g} s and rounds up to {intervals.max():.3g} s apart; lower RATE, or n"
            )
        source = np.random.default_rng(mix(self.seed, "failures"))
        lost = np.zeros(len(intervals))
        until_failure = source.exponential(mean_gap)
        for i, interval in enumerate(intervals.tolist()):
            while until_failure < interval:
                lost[i] += until_failure + failures.seconds
                until_failure = source.exponential(mean_gap)
            until_failure -= interval
        done[1:] += np.repeat(lost.cumsum(), np.diff(bounds))
        return done


def _by_step(rounds: Sequence[_Round], event: str) -> defaultdict[int, list[int]]:
    """Return for each step the indices of the rounds whose event ("started" or "landed") is there."""
    by_step: defaultdict[int, list[int]] = defaultdict(list)
    for i, round_ in enumerate(rounds):
        by_step[getattr(round_, event)].append(i)
    return by_step
