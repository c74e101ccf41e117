"""The schedule of faults of a run, drawn before it starts."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

from swarmstep.errors import UsageError

T = TypeVar("T")

ABOUT = {
    "kill": "a worker's process is killed (SIGKILL) and replaced",
    "stop": "a worker is stopped (SIGSTOP) for longer than the others wait, then continues",
    "cut": "a worker's network link is down for a while (needs root and network namespaces)",
    "slow": "a worker runs only half of the time",
    "disk": "the file system of the checkpoints is full for a while (needs root)",
}
"""The kinds of faults."""
KINDS = (*ABOUT,)
REMOVING = ("kill", "stop", "cut")  # kinds that remove their victim from the group
SECONDS = {"stop": (4.0, 8.0), "cut": (4.0, 8.0), "slow": (4.0, 8.0), "disk": (8.0, 12.0)}  # shortest, longest
QUIET = 20.0  # seconds without faults at the end of a run, in which the last victims can come back
MIN_HEALTHY = 2  # members that a fault must leave


class ScheduledFault(NamedTuple):
    """A fault of the schedule."""

    at: float  # seconds after the first committed round
    kind: str  # one of KINDS
    slot: int | None  # of the victim; None for all workers (disk)
    seconds: float  # duration; 0 for a kill


def schedule(
    seed: int, seconds: float, per_hour: float, workers: int, kinds: Sequence[str]
) -> list[ScheduledFault]:
    """Return the faults of a run in order of time; the same arguments give the same faults.

    The run without its last QUIET seconds is divided into equal intervals, `per_hour` an hour, rounded to a whole
    number; each has one fault at a random time. Kinds are drawn in random order so that their counts differ by at
    most one, and so are the victims.

    Args:
        seed: of all randomness.
        seconds: of the run, above QUIET.
        per_hour: above 0.
        workers: slots 0 to workers - 1.
        kinds: of KINDS, at least one.
    """
    from swarmstep.seeding import mix  # which imports torch; the help of the command reads the constants only

    usable = seconds - QUIET
    if usable <= 0:
        raise UsageError(
            f"expected a run of more than {QUIET:g} s, which stay free of faults; found {seconds:g} s"
        )
    count = round(per_hour * usable / 3600.0)
    source = random.Random(mix(seed, "chaos"))
    kinds_drawn = _evenly_drawn(source, kinds, count)
    victims = iter(_evenly_drawn(source, range(workers), count))
    faults: list[ScheduledFault] = []
    for index, kind in enumerate(kinds_drawn):
        at = (index + source.random()) * usable / count
        shortest, longest = SECONDS.get(kind, (0.0, 0.0))
        slot = None if kind == "disk" else next(victims)
        faults.append(ScheduledFault(at, kind, slot, source.uniform(shortest, longest)))
    return faults


def _evenly_drawn(source: random.Random, choices: Sequence[T], count: int) -> list[T]:
    """Return `count` choices: random permutations of all choices, one after another."""
    permutations = (source.sample(choices, len(choices)) for _ in range(math.ceil(count / len(choices))))
    return [choice for permutation in permutations for choice in permutation][:count]


def victim(slot: int, kind: str, healthy: Collection[int], workers: int) -> int | None:
    """Return the victim of a fault: its slot or the next healthy one; None if no worker may be hit now.

    Args:
        slot: of the schedule.
        kind: of the fault.
        healthy: slots whose workers are members of the group and have no other fault.
        workers: number of slots.
    """
    if not healthy or (kind in REMOVING and len(healthy) <= MIN_HEALTHY):
        return None
    return min(healthy, key=lambda other: (other - slot) % workers)
