"""Whoever dies or stops, wherever: no committed round is lost, and nobody waits for ever. By seeded trials."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from elastic_world import (
    AT_THE_END,
    IN_A_CHANGE,
    IN_A_ROUND,
    LR,
    METHODS,
    PERIOD,
    STEP,
    WORKERS,
    Fault,
    Plan,
    Worker,
    World,
)
from helpers import same
from swarmstep import fault_points, simulate
from swarmstep.runtime.flat import Flat
from whole_runs import fast_ones

LIMIT = 60.0  # seconds for a whole trial; far beyond what any takes
SILENCE = 2.0
AT_A_TIME = 3  # trials: most of their time is silence
WITH_A_DELAY = (fault_points.SPLITTING, fault_points.CONNECTING_PART)
NOT_AT_THE_START = (fault_points.HANDING_OVER, fault_points.HANDED_OVER, fault_points.MEETING)
OFTEN = {
    STEP: 16,
    fault_points.COLLECTIVE: 30,
    fault_points.COLLECTIVE_STARTED: 30,
}  # how often a run passes these
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
    method = rng.choice([name for name in METHODS if name not in ("local-sgd:seldom", "local-sgd:states")])
    kind = rng.choice(["kill", "kill", "stop"])
    slot = rng.randrange(WORKERS)
    mine, scene = f"{slot}.0", rng.choice(["round", "round", "change", "change", "start", "end"])
    points = [p for p in IN_A_CHANGE if p not in WITH_A_DELAY or METHODS[method][1].get("delay")]
    if scene == "round":
        point = rng.choice(IN_A_ROUND)
        faults = {mine: Fault(point, rng.randint(1, OFTEN.get(point, 5)), kind)}
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
        alive = {
            name for name, t in told.items() if not t.gone and name not in self.world.stopped | self.world.killed
        }
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
    histories = {name: done[5] for name, done in ends.items()}
    assert len({tuple(epochs) for epochs in histories.values()}) == 1, histories
    at_the_end = any(fault.point in AT_THE_END for fault in trial.faults.values())
    if not (
        at_the_end and trial.replaced
    ):  # whoever joins those who have finished trains on to a round of its own
        assert len({done[0] for done in ends.values()}) == 1, {name: done[:3] for name, done in ends.items()}
    check_rounds(trial, world)
    for name in world.told:
        check_history(world.told[name].order, name)
    check_changes(trial.method, world)
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


def check_changes(method: str, world: World) -> None:
    """Check that the members of a new group start it alike, and newcomers from what the others have."""
    groups: dict[tuple[Any, ...], dict[str, tuple[Any, ...]]] = {}
    for name, told in world.told.items():
        for change, states, x in told.changes:
            key = (change.rounds, change.names, change.sources)
            groups.setdefault(key, {})[name] = (change, states, x)
    for told in groups.values():
        assert len({states for _, states, _ in told.values()}) == 1
        counts = {name: (change.step, change.committed) for name, (change, *_) in told.items()}
        if not METHODS[method][0].when.voting:  # those who have heard a roll to its end are a step ahead
            assert len(set(counts.values())) == 1, (counts, told)
        old = [x for change, _, x in told.values() if not change.newcomer]
        names = next(iter(told.values()))[0].names
        if len(told) < len(names):
            continue  # somebody was struck before it could say what it has
        mean = torch.stack(old).double().mean(0)
        for change, _, x in told.values():
            if change.newcomer:
                assert torch.allclose(x.double(), mean, rtol=1e-6, atol=1e-7)


def failures(seeds: range) -> list[str]:
    """Play the trials of these seeds, a few at a time; return what went wrong."""

    def failure(seed: int) -> str:
        trial = drawn(seed)
        play = Play(trial)
        try:
            check(trial, play.run())
        except (AssertionError, TimeoutError) as error:
            return f"seed {seed}, {trial}: {error}\n{play.world.summary()}"
        struck.append(any(told.struck for told in play.world.told.values()))
        return ""

    struck: list[bool] = []
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        found = [said for said in pool.map(failure, seeds) if said]
    assert found or sum(struck) > 0.9 * len(seeds)  # most who should be struck were there
    return found


def test_five_trials() -> None:
    assert failures(range(5)) == []


@pytest.mark.slow
def test_two_hundred_trials() -> None:
    assert failures(range(200)) == []


# The oracle: what the survivors should have computed, by `simulate`, with every change of membership made by hand.

STEPS, STRUCK = 16, 8  # rounds at steps 4, 8, 12 and 16


def trained_apart(comm: Any, method: str, upto: int) -> dict[str, Any]:
    """Train to the local step `upto`, its `sync.step` excluded; return what a checkpoint holds, and the loss."""
    worker = Worker(Plan(method), comm, comm.rank)
    while worker.sync.steps < upto - 1:
        worker.sync.step(worker.local_step(), lr=LR)
    loss = worker.local_step()
    parts = {"optimizer": worker.optimizer.state_dict(), "sync": worker.sync.state_dict()}
    pending = parts["sync"]["fragments"][0]["pending"]
    if "ahead" in pending:  # a round that does not count is taken back
        flat = Flat(worker.model)
        x, n = flat.read(), flat.layout.parameters
        x[:n] += pending["x"][:n] - pending["ahead"][:n]
        flat.write(x)
    model = {name: tensor.clone() for name, tensor in worker.model.state_dict().items()}
    return {"model": model, "loss": loss.detach(), **parts}


def gone_on(comm: Any, method: str, saved: list[dict[str, Any]], sources: Sequence[int]) -> torch.Tensor:
    """Go on in the group of those who are left, from the last step's `sync.step` on, to the end."""
    slot = sources[comm.rank]
    mine = saved[slot]
    worker = Worker(Plan(method), comm, slot)
    worker.model.load_state_dict(mine["model"])
    worker.optimizer.load_state_dict(mine["optimizer"])
    worker.sync.load_state_dict(mine["sync"], sources)
    worker.sync.step(mine["loss"], lr=LR)
    while worker.sync.steps < STEPS:
        worker.sync.step(worker.local_step(), lr=LR)
    worker.sync.finish()
    return worker.weights()


def expected(method: str, victim: int, struck: int, lost: bool) -> list[torch.Tensor]:
    """Return the final weights of the survivors.

    Args:
        method: of METHODS.
        victim: the slot that dies.
        struck: the local step at which the survivors notice, whose `sync.step` they take without it.
        lost: whether a round was under way that does not count.
    """
    saved = simulate(lambda comm: trained_apart(comm, method, struck), WORKERS)
    for part in (fragment for worker in saved for fragment in worker["sync"]["fragments"]):
        assert bool(part["pending"]) == lost
        part["pending"], part["staged"] = {}, {}
    sources = [slot for slot in range(WORKERS) if slot != victim]
    return simulate(lambda comm: gone_on(comm, method, saved, sources), len(sources))


def found(method: str, victim: int, fault: Fault) -> list[torch.Tensor]:
    """Return the final weights of the survivors of real processes of which one is killed."""
    with World(Plan(method, steps=STEPS)) as world:
        for slot in range(WORKERS):
            world.start(f"{slot}.0", fault=fault if slot == victim else None)
        world.until(world.ended(f"{victim}.0"))
        world.declare_dead(f"{victim}.0")
        names = [f"{slot}.0" for slot in range(WORKERS) if slot != victim]
        world.until(world.ended(*names))
        for name in names:
            assert len(world.told[name].changes) == 1, world.told[name]
            ((change, *_),) = world.told[name].changes
            assert change.sources == tuple(slot for slot in range(WORKERS) if slot != victim)
        return [world.told[name].done[3] for name in names]


NOT_DELAYED = [
    name for name, (strategy, options) in METHODS.items() if not (options.get("delay") or strategy.when.voting)
]


@pytest.mark.parametrize("victim", fast_ones([0], [0, 2]))
@pytest.mark.parametrize("method", fast_ones(NOT_DELAYED[::2], NOT_DELAYED))
def test_killed_before_the_round_counts_the_survivors_go_on_as_simulated(method: str, victim: int) -> None:
    """The round at STRUCK is made again by those who are left: with them alone, bit for bit."""
    real = found(method, victim, Fault(fault_points.EXCHANGED, STRUCK // PERIOD))
    assert same(real, expected(method, victim, STRUCK, lost=False))


@pytest.mark.parametrize("method", fast_ones(NOT_DELAYED[1::2], NOT_DELAYED))
def test_killed_after_the_round_counts_it_holds_for_the_survivors(method: str) -> None:
    """The round at STRUCK was made with all three; the next one is made by those who are left."""
    real = found(method, 1, Fault(fault_points.DECIDED, STRUCK // PERIOD))
    assert same(real, expected(method, 1, STRUCK + PERIOD, lost=False))


@pytest.mark.parametrize(
    "method", [name for name, (_, options) in METHODS.items() if options.get("delay") == 2 and "vote" not in name]
)
@pytest.mark.parametrize("lost", fast_ones([True], [True, False]))
def test_killed_while_a_round_travels(method: str, lost: bool) -> None:
    """Noticed where a round would land: the one under way is dropped by all, or the one after it."""
    real = found(method, 0, Fault(fault_points.EXCHANGED if lost else fault_points.LANDED, STRUCK // PERIOD))
    assert same(real, expected(method, 0, STRUCK + 2 + (0 if lost else PERIOD), lost=True))
