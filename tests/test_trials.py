"""Whoever dies or stops, wherever: no committed round is lost, and nobody waits for ever. By seeded trials."""

from __future__ import annotations

import dataclasses
import random
import time
from typing import Any

import pytest
import torch

from elastic_world import AT_THE_END, IN_A_CHANGE, IN_A_ROUND, METHODS, PERIOD, WORKERS, Fault, Plan, World

LIMIT = 60.0  # seconds for a whole trial; far beyond what any takes
SILENCE = 2.0
WITH_A_DELAY, NOT_AT_THE_START = ("splitting", "new group"), ("hand_over", "handed", "meeting")
ENOUGH = 60  # rounds after which a fault that has not struck will not


@dataclasses.dataclass(frozen=True)
class Trial:
    """Who is struck where; whether the others are told of a death; whether somebody comes in the place.

    `thaw`: seconds after which one that was stopped goes on; None: it never does.
    """

    method: str
    faults: dict[str, Fault]
    told: bool
    replaced: bool
    thaw: float | None


def drawn(seed: int) -> Trial:
    """Return the trial of a seed."""
    rng = random.Random(seed)
    method = rng.choice([*METHODS])
    kind = rng.choice(["kill", "kill", "stop"])
    slot = rng.randrange(WORKERS)
    mine, scene = f"{slot}.0", rng.choice(["round", "round", "change", "change", "start", "end"])
    points = [p for p in IN_A_CHANGE if p not in WITH_A_DELAY or METHODS[method][1].get("delay")]
    if scene == "round":
        point = rng.choice(IN_A_ROUND)
        faults = {mine: Fault(point, rng.randint(1, {"step": 16, "collective": 30, "started": 30}.get(point, 5)), kind)}
    elif scene == "change":
        point = rng.choice(points)
        victim = rng.choice([f"{(slot + rng.choice([1, 2])) % WORKERS}.0", f"{slot}.1"])
        # Those who were there at the start have passed the point once; only newcomers are handed anything.
        nth = 1 if victim.endswith(".1") else rng.choice([1, 2] if point in NOT_AT_THE_START else [2, 2, 3])
        faults = {mine: Fault(rng.choice(IN_A_ROUND), rng.randint(2, 4), "kill"), victim: Fault(point, nth, kind)}
    elif scene == "start":
        faults = {mine: Fault(rng.choice([p for p in points if p not in NOT_AT_THE_START]), 1, kind)}
    else:
        faults = {mine: Fault(rng.choice(AT_THE_END), 1, kind)}
    thaw = rng.choice([None, rng.uniform(0.2, 2.0) * SILENCE])
    return Trial(method, faults, rng.random() < 0.7, scene == "change" or rng.random() < 0.6, thaw)


class Play:
    """One trial, played by the test process as a supervisor."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.world = World(Plan(method=trial.method, silence=SILENCE))
        self.asked = 0  # rounds that were behind the run when all were whole

    def run(self) -> World:
        """Play it to the end.

        Raises:
            TimeoutError: it does not end.
        """
        world, deadline = self.world, time.monotonic() + LIMIT
        with world:
            for slot in range(WORKERS):
                self._start(f"{slot}.0")
            while self.ends_due():
                if time.monotonic() > deadline:
                    raise TimeoutError(world.summary())
                for name in world.listen(0.02):
                    self._bury(name)
                self._thaw()
                self._finish()
        return world

    def ends_due(self) -> list[str]:
        """Return who has still to end."""
        frozen = self.world.stopped if self.trial.thaw is None else set()
        return [name for name, told in self.world.told.items() if not told.gone and name not in frozen]

    def _start(self, name: str) -> None:
        self.world.start(name, fault=self.trial.faults.get(name))

    def _bury(self, name: str) -> None:
        if name not in self.world.killed:
            return
        if self.trial.told:
            self.world.declare_dead(name)
        if self.trial.replaced:
            slot, count = name.split(".")
            self._start(f"{slot}.{int(count) + 1}")

    def _thaw(self) -> None:
        for name in list(self.world.stopped):
            since = self.world.told[name].struck or 0.0
            if self.trial.thaw is not None and time.monotonic() > since + self.trial.thaw:
                self.world.thaw(name)

    def _finish(self) -> None:
        """Ask all to finish, two rounds after all who live are in."""
        number, _, members, *_ = self.world.newest()
        if self.asked:
            if number >= self.asked + 2:
                self.world.ask("finish")
            return
        awaited = [name for name, fault in self.trial.faults.items() if fault.point not in AT_THE_END]
        told = self.world.told
        struck = all(name in told and told[name].struck for name in awaited)
        alive = {name for name, t in told.items() if not t.gone and name not in self.world.stopped | self.world.killed}
        if (struck and alive == set(members)) or number > ENOUGH:
            self.asked = number


def check(trial: Trial, world: World) -> None:
    """Check that nothing was lost, and all that remained agree."""
    unstruck = [name for name, told in world.told.items() if not told.struck]
    for name, told in world.told.items():
        assert not told.error, (name, told.error)
        if name not in world.killed and name not in world.stopped:
            assert told.done or told.over, f"{name} ended without a word"
    ends = {name: told.done for name, told in world.told.items() if told.done}
    assert ends
    assert len({done[1] for done in ends.values()}) == 1, {name: done[:3] for name, done in ends.items()}
    at_the_end = any(fault.point in AT_THE_END for fault in trial.faults.values())
    if not (at_the_end and trial.replaced):  # whoever joins those who have finished trains on to a round of its own
        assert len({done[0] for done in ends.values()}) == 1, {name: done[:3] for name, done in ends.items()}
    check_rounds(trial, world)
    for name in world.told:
        check_history(world.told[name].order, name)
    check_changes(world)
    if METHODS[trial.method][0].one_result:
        finals = [done[3] for done in ends.values()]
        assert all(torch.equal(x, finals[0]) for x in finals)
    assert unstruck


def check_rounds(trial: Trial, world: World) -> None:
    """Check that each round was one and the same for all who were in it, and landed at all who are left."""
    strategy, options = METHODS[trial.method]
    common = strategy.common == "weights" and not options.get("delay")
    total = max(told.done[1] for told in world.told.values() if told.done)
    found: dict[int, tuple[Any, ...]] = {}
    for name, told in world.told.items():
        for number, step, members, digest, states, _ in told.rounds:
            assert number <= total, f"{name} has landed round {number}, the run has {total}"
            said = (step, members, states, digest if common else "")
            assert found.setdefault(number, said) == said, (name, number)
    assert sorted(found) == list(range(1, total + 1))
    for number, (_, members, *_) in found.items():
        for name in members:
            told = world.told[name]
            if told.done:
                assert number in [row[0] for row in told.rounds], (name, number)


def check_history(order: list[tuple[Any, ...]], name: str) -> None:
    """Check that a worker's rounds follow one another, and its counts never go back."""
    rounds, committed, steps = 0, 0, 0
    for _, what, *rest in order:
        if what == "round":
            assert rest[0] == rounds + 1, (name, rest[0], rounds)
            assert rest[1] >= committed
            rounds, committed = rest[0], rest[1]
        elif what == "change":
            change = rest[0]
            assert change.rounds == rounds or (change.newcomer and change.rounds > rounds), (name, change)
            assert change.committed == committed or (change.newcomer and change.committed >= committed)
            assert change.step >= steps
            assert change.names[change.rank] == name
            rounds, committed, steps = change.rounds, change.committed, change.step


def check_changes(world: World) -> None:
    """Check that the members of a new group start it alike, and newcomers from what the others have."""
    groups: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    for name, told in world.told.items():
        for change, states, x in told.changes:
            key = (change.rounds, change.names, change.sources)
            groups.setdefault(key, {})[name] = (change, states, x)
    for told in groups.values():
        assert len({states for _, states, _ in told.values()}) == 1
        assert len({(c.step, c.committed) for c, *_ in told.values()}) == 1
        old = [x for change, _, x in told.values() if not change.newcomer]
        names = next(iter(told.values()))[0].names
        if len(told) < len(names):
            continue  # somebody was struck before it could say what it has
        mean = torch.stack(old).double().mean(0)
        for change, _, x in told.values():
            if change.newcomer:
                torch.testing.assert_close(x.double(), mean, rtol=1e-6, atol=1e-7)


def recovery(world: World) -> float:
    """Return the longest time from a strike to a group without the victim."""
    worst = 0.0
    for victim, told in world.told.items():
        if told.struck is None:
            continue
        after = [
            when
            for other in world.told.values()
            for when, what, *rest in other.order
            if what == "change" and when > told.struck and victim not in rest[0].names
        ]
        worst = max(worst, min(after, default=told.struck) - told.struck)
    return worst


def play(seed: int) -> tuple[Trial, World]:
    """Play the trial of a seed and check it."""
    trial = drawn(seed)
    world = Play(trial).run()
    check(trial, world)
    return trial, world
