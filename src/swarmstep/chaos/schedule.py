"""When what goes wrong, drawn before the run."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

from swarmstep.errors import UsageError

T = TypeVar("T")

ABOUT = {
    "kill": "a worker's process ends (SIGKILL) and is replaced",
    "stop": "a worker stands still (SIGSTOP) for longer than the others wait, then goes on",
    "cut": "a worker's network link is down for a while (root and network namespaces)",
    "slow": "a worker runs for half of the time only",
    "disk": "the file system of the checkpoints is full for a while (root)",
}
"""The kinds of faults."""
KINDS = (*ABOUT,)
AWAY = ("kill", "stop", "cut")  # kinds that take their victim out of the group
SECONDS = {"stop": (4.0, 8.0), "cut": (4.0, 8.0), "slow": (4.0, 8.0), "disk": (8.0, 12.0)}  # shortest, longest
QUIET = 20.0  # seconds without faults at the end of a run, in which the last victims can come back
LEAST = 2  # healthy members that a fault must leave


class ScheduledFault(NamedTuple):
    """One thing that goes wrong."""

    at: float  # seconds after the first committed round
    kind: str  # one of KINDS
    slot: int | None  # whose turn it is; None: all workers' (disk)
    seconds: float  # how long; 0: it is over at once (kill)


def schedule(
    seed: int, seconds: float, per_hour: float, workers: int, kinds: Sequence[str]
) -> list[ScheduledFault]:
    """Return the faults of a run, in time order; the same arguments give the same faults.

    One in each of equal intervals, at a random moment: `per_hour` of them per hour of the run but its last QUIET
    seconds, rounded to the nearest whole number. The kinds take turns in random order, so that their numbers
    differ by at most one, and so do the victims of all slots.

    Args:
        seed: of all randomness.
        seconds: of the run, above QUIET.
        per_hour: above 0.
        workers: slots 0 to workers - 1.
        kinds: of KINDS, at least one.
    """
    from swarmstep.seeding import mix  # which imports torch; the help of the command reads the constants only

    stormy = seconds - QUIET
    if stormy <= 0:
        raise UsageError(
            f"expected a run of more than {QUIET:g} s, which stay free of faults; found {seconds:g} s"
        )
    count = round(per_hour * stormy / 3600.0)
    chance = random.Random(mix(seed, "chaos"))
    turns = _turns(chance, kinds, count)
    victims = iter(_turns(chance, range(workers), count))
    faults: list[ScheduledFault] = []
    for index, kind in enumerate(turns):
        at = (index + chance.random()) * stormy / count
        shortest, longest = SECONDS.get(kind, (0.0, 0.0))
        slot = None if kind == "disk" else next(victims)
        faults.append(ScheduledFault(at, kind, slot, chance.uniform(shortest, longest)))
    return faults


def _turns(chance: random.Random, choices: Sequence[T], count: int) -> list[T]:
    """Return `count` choices, in each round of turns all of them once, in random order."""
    rounds = (chance.sample(choices, len(choices)) for _ in range(math.ceil(count / len(choices))))
    return [choice for turn in rounds for choice in turn][:count]


def victim(slot: int, kind: str, healthy: Collection[int], workers: int) -> int | None:
    """Return who is struck in place of `slot`: itself or the next healthy one; None: nobody may be struck now.

    Args:
        slot: whose turn it is.
        kind: of the fault.
        healthy: slots whose workers are members of the group and are not under a fault.
        workers: how many slots.
    """
    if not healthy or (kind in AWAY and len(healthy) <= LEAST):
        return None
    return min(healthy, key=lambda other: (other - slot) % workers)
