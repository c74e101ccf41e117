"""What --speeds, --jitter and --disturb say: how fast each worker is, and when."""

from __future__ import annotations

import math

import torch

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.network.speeds import Disturbance, Speeds
from swarmstep.seeding import generator
from swarmstep.train.config import Config

HORIZON = 100_000.0  # seconds in which there are random disturbances


def parse_speeds(config: Config) -> Speeds:
    """Return how fast the workers of a run are; all the same where nothing is said.

    Raises:
        UsageError: an option is malformed or out of its range.
    """
    if not 0 <= config.jitter < 1:
        raise UsageError(f"--jitter: expected 0 to below 1, found {config.jitter:g}")
    return Speeds(_seconds(config), config.jitter, tuple(_disturbances(config)), config.seed)


def unequal(config: Config) -> bool:
    """Return whether the run plays workers of different or changing speeds."""
    return bool(config.speeds or config.jitter or config.disturb)


def _seconds(config: Config) -> tuple[float, ...]:
    workers, spec = config.workers, config.speeds
    if spec is None:
        return (1.0,) * workers
    try:
        speeds = [float(text) for text in spec.split(",")]
    except ValueError:
        speeds = []
    if len(speeds) != workers or not all(1e-3 <= speed <= 1e3 for speed in speeds):
        raise UsageError(
            f"--speeds: expected {workers} numbers from 0.001 to 1000, one for each worker, such as "
            f"{','.join(['1'] * (workers - 1) + ['3'])}; found {spec!r}"
        )
    return tuple(speeds)


def _disturbances(config: Config) -> list[Disturbance]:
    try:
        found = (
            [one for text in config.disturb.split(",") for one in _parsed(text, config)] if config.disturb else []
        )
    except ValueError:
        raise UsageError(f"--disturb: expected {spec_help.DISTURB}; found {config.disturb!r}") from None
    for worker, start, end, factor in found:
        if worker not in range(config.workers) or not 0 <= start < end < math.inf or not factor >= 1:
            raise UsageError(
                f"--disturb: expected a worker from 0 to {config.workers - 1}, FROM before TO and a factor of at "
                f"least 1; found {config.disturb!r}"
            )
    return found


def _parsed(text: str, config: Config) -> list[Disturbance]:
    first, *rest = text.split(":")
    if first == "random":
        rate, seconds, factor = map(float, rest)
        if not (0 < rate <= 3600 and 0 < seconds <= 1e6):
            raise ValueError
        return [
            one for worker in range(config.workers) for one in _random(worker, rate, seconds, factor, config.seed)
        ]
    during, factor = rest
    start, end = map(float, during.split("-"))
    return [Disturbance(int(first), start, end, float(factor))]


def _random(worker: int, rate: float, seconds: float, factor: float, seed: int) -> list[Disturbance]:
    """Return disturbances of one worker: `rate` an hour, independent of each other."""
    source, now, found = generator(seed, "disturb", worker), 0.0, list[Disturbance]()
    while True:
        drawn = float(torch.rand((), dtype=torch.float64, generator=source))
        now -= 3600 / rate * math.log1p(-drawn)
        if now > HORIZON:
            return found
        found.append(Disturbance(worker, now, now + seconds, factor))
        now += seconds
