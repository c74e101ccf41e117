"""The schedule of faults of a run, drawn before it starts."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import NamedTuple, TypeVar

from swarmstep.errors import UsageError

T = TypeVar("T")


class Kind(NamedTuple):
    """A kind of fault.

    `seconds`: how long one lasts, from and to. `strikes`: "worker", "supervisor" (all its workers), "store" or
    "disk". `removes`: whether its victims leave the group. `kills`: whether their processes end.
    """

    about: str
    seconds: tuple[float, float] = (0.0, 0.0)
    strikes: str = "worker"
    removes: bool = False
    kills: bool = False


TABLE = {
    "kill": Kind("a worker's process is killed (SIGKILL) and replaced", removes=True, kills=True),
    "stop": Kind(
        "a worker is stopped (SIGSTOP) for longer than the others wait, then continues", (4, 8), removes=True
    ),
    "cut": Kind(
        "a worker's network link is down for a while (needs root and network namespaces)", (4, 8), removes=True
    ),
    "slow": Kind("a worker runs only half of the time", (4, 8)),
    "disk": Kind("the file system of the checkpoints is full for a while (needs root)", (8, 12), "disk"),
    "readonly": Kind("the file system of the checkpoints is read-only for a while (needs root)", (8, 12), "disk"),
    "corrupt": Kind("a bit of the newest checkpoint is flipped on disk", strikes="disk"),
    "mute": Kind("nothing that a worker sends arrives; it still receives (root)", (4, 8), removes=True),
    "deaf": Kind("a worker receives nothing; what it sends arrives (root)", (4, 8), removes=True),
    "crash": Kind(
        "a worker's machine ends without a word: its link is down, its process gone, its connections stay half "
        "open (root)", (4, 8), removes=True, kills=True,
    ),
    "loss": Kind("a fifth of all packets to and from a worker is lost (root)", (4, 8)),
    "delay": Kind("packets to a worker take 0.5 s longer (root)", (4, 8)),
    "memory": Kind(
        "a worker's memory is limited (cgroup) until the kernel ends it (root)", (6, 8), removes=True, kills=True
    ),
    "churn": Kind(
        "a worker joins and leaves, again and again: it is killed as soon as it has joined", (12, 16),
        removes=True, kills=True,
    ),
    "replay": Kind("old messages of a worker come once more: its vote, its heartbeat, its wish to join"),
    "leader": Kind("the store's leader is killed, and comes back (needs --store etcd)", (4, 8), "store"),
    "supervisor": Kind(
        "a supervisor is killed with all its workers, and replaced (needs --store etcd)", strikes="supervisor",
        removes=True, kills=True,
    ),
}  # fmt: skip
"""The kinds of faults."""
IMPOSSIBLE = {
    "slowdisk": "a slow disk needs dm-delay of the kernel's device mapper, which nothing here sets up",
    "clock": "a clock that jumps needs libfaketime; no wait here asks the clock that can jump",
}
"""Faults that are known by name and cannot be injected, and why."""
ABOUT = {name: kind.about for name, kind in TABLE.items()}
KINDS = (*TABLE,)
REMOVING = tuple(name for name, kind in TABLE.items() if kind.removes)  # remove their victims from the group
SECONDS = {name: kind.seconds for name, kind in TABLE.items() if kind.seconds[1]}  # shortest, longest
QUIET = 20.0  # seconds without faults at the end of a run, in which the last victims can come back
MIN_HEALTHY = 2  # members that a fault must leave


class ScheduledFault(NamedTuple):
    """A fault of the schedule."""

    at: float  # seconds after the first committed round
    kind: str  # one of KINDS
    slot: int | None  # of the victim; None where it is no worker
    seconds: float  # duration; 0 for a kill


def schedule(
    seed: int, seconds: float, per_hour: float, workers: int, kinds: Sequence[str], together: float = 0.0
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
        together: how many of the faults strike at once with the one before, as a share, 0 to 1.
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
        slot = next(victims) if TABLE[kind].strikes == "worker" else None
        faults.append(ScheduledFault(at, kind, slot, source.uniform(*SECONDS.get(kind, (0.0, 0.0)))))
        if together and faults[1:] and source.random() < together:
            faults[-1] = faults[-1]._replace(at=faults[-2].at)
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
