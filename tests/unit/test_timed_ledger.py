"""Rounds by time in elastic groups: whatever happens, each pass shows each example once by steps that count."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import same
from swarmstep import EveryTime, LocalSGD, Options
from swarmstep.data.timed_ledger import TimedLedger
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.runtime.startup_checks import check_elastic


class Event(NamedTuple):
    """What the workers do until the next event: a round that counts, or a change of membership."""

    steps: tuple[int, ...]  # of each, at most five workers
    lands: bool
    lost: int  # which ranks, as bits
    newcomers: int


EVENTS = st.lists(
    st.builds(
        Event,
        st.tuples(*[st.integers(0, 4)] * 5),
        st.booleans(),
        st.integers(0, 31),
        st.integers(0, 3),
    ),
    max_size=9,
)


class Worker:
    """Remembers what it has drawn in the present round by steps that count there."""

    def __init__(self) -> None:
        self.draws, self.own = list[int](), 0


class Group:
    """Workers that draw what a ledger says, with their own books of what counts."""

    def __init__(self, examples: int, batch: int, workers: int) -> None:
        self.ledger, self.batch = TimedLedger(examples, batch, 3, workers), batch
        self.workers = [Worker() for _ in range(workers)]
        self.counted = Counter[int]()

    def play(self, event: Event) -> None:
        for rank, worker in enumerate(self.workers):
            for _ in range(event.steps[rank % 5]):
                places = worker.own * self.batch, (worker.own + 1) * self.batch
                drawn = self.ledger.draw(rank, 1, places).tolist()
                worker.draws += drawn if self.ledger.counts(rank) else []
                worker.own += 1
        if event.lands:
            self.land()
        else:
            self.change(event)

    def land(self) -> None:
        steps = [len(worker.draws) // self.batch for worker in self.workers]  # those that have a weight
        for worker in self.workers:
            self.counted.update(worker.draws)
            worker.draws, worker.own = [], 0
        self.ledger.deal(0, 0, range(len(self.workers)), steps)

    def change(self, event: Event) -> None:
        begun = any(worker.own for worker in self.workers)
        old = [rank for rank in range(len(self.workers)) if not event.lost >> rank & 1] or [0]
        self.ledger.deal(int(begun), 0, [*old, *[None] * event.newcomers])
        self.workers = [self.workers[rank] for rank in old] + [Worker() for _ in range(event.newcomers)]


@given(examples=st.integers(1, 23), batch=st.integers(1, 9), workers=st.integers(1, 5), events=EVENTS)
def test_each_pass_shows_each_example_once_by_steps_that_count(
    examples: int, batch: int, workers: int, events: list[Event]
) -> None:
    group = Group(examples, batch, workers)
    for event in events:
        group.play(event)
    assert group.ledger.workers == len(group.workers)
    group.land()
    # What went back comes first: as soon as one worker alone has drawn all that, whole passes are counted.
    group.change(Event((0,) * 5, False, ~1, 0))
    missing = -len(group.ledger.state_dict()["returned"]) // batch
    for _ in range(-missing):
        group.play(Event((1,) * 5, True, 0, 0))
    for _ in range(3):
        counts = [group.counted[example] for example in range(examples)]
        assert min(counts) == sum(counts) // examples
        assert max(counts) <= min(counts) + 1
        group.play(Event((1,) * 5, True, 0, 0))


@given(batch=st.integers(1, 5), workers=st.integers(1, 5), events=EVENTS, cut=st.integers(0, 8))
def test_a_saved_ledger_goes_on_alike(batch: int, workers: int, events: list[Event], cut: int) -> None:
    straight, resumed = Group(17, batch, workers), Group(17, batch, workers)
    for i, event in enumerate(events):
        straight.play(event)
        resumed.play(event)
        if i == cut:
            saved = resumed.ledger.state_dict()
            resumed.ledger = TimedLedger(17, batch, 3, 1)
            resumed.ledger.load_state_dict(saved)
    assert resumed.counted == straight.counted
    assert same(resumed.ledger.state_dict(), straight.ledger.state_dict())


def test_who_comes_when_there_is_no_column_left_does_not_count() -> None:
    ledger = TimedLedger(100, 2, 0, 1)  # a column of its own, and two more
    ledger.deal(1, 0, [0, None, None, None])
    assert [ledger.counts(rank) for rank in range(4)] == [True, True, True, False]
    drawn = [ledger.draw(rank, 1, (0, 2)).tolist() for rank in range(3)]
    assert len({example for block in drawn for example in block}) == 6
    ledger.deal(1, 1, range(4), [1, 1, 1, 0])  # a round has landed
    assert all(ledger.counts(rank) for rank in range(4))


def test_what_is_no_ledger() -> None:
    with pytest.raises(UsageError, match="must be at least 1, found 0, 1 and 1"):
        TimedLedger(0, 1, 0, 1)
    ledger = TimedLedger(5, 2, 0, 2)
    good = ledger.state_dict()
    for name, wrong in [
        ("examples", 6),
        ("count", 1),
        ("place", -1),
        ("columns", [4]),
        ("returned", torch.zeros(2)),
        ("returned", torch.tensor([[0, 5]])),
    ]:
        with pytest.raises(CheckpointError, match=r"ledger"):
            ledger.load_state_dict({**good, name: wrong})
    assert same(ledger.state_dict(), good)


def test_rounds_by_time_go_with_elastic_groups() -> None:
    timed = LocalSGD(when=EveryTime(2.0, together=False))
    check_elastic(timed, Options())
    for options in (Options(delay=1), Options(fragments=2)):
        with pytest.raises(UsageError, match="expected no delay and 1 fragment"):
            check_elastic(timed, options)
