"""Triggers that follow from the count of steps, and warm-ups."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import Trainer, Vote, run, same
from swarmstep import PSOPS, Comm, Every, LocalSGD, Never, Strategy, WarmupThen, When, simulate
from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Signal
from swarmstep.when import NoState

LAYOUT = Layout(("x",), (3,), 3)


def asked(when: When, steps: int) -> list[int]:
    """Return the steps after which a round is due."""
    state = when.init(LAYOUT, 4)
    signals = [Signal(n, 0, 0.1, lambda: 1.0, lambda: torch.zeros(3), None) for n in range(1, steps + 1)]
    return [signal.step for signal in signals if when.due(state, signal)]


@given(st.integers(1, 9), st.integers(0, 60))
def test_every_nth_step(n: int, steps: int) -> None:
    assert asked(Every(n), steps) == list(range(n, steps + 1, n))


def test_never() -> None:
    assert asked(Never(), 100) == []


@given(st.integers(0, 12), st.integers(1, 7))
def test_a_warm_up_does_not_shift_the_schedule_behind_it(steps: int, n: int) -> None:
    expected = sorted({*range(1, steps + 1), *range(n, 41, n)})
    assert asked(WarmupThen(steps, Every(n)), 40) == expected


def test_a_warm_up_asks_what_follows_at_every_step() -> None:
    """What follows has seen every step, so that its windows are full when its time comes."""
    warm = WarmupThen(3, Vote())
    state: Any = warm.init(LAYOUT, 4)
    for n in range(1, 6):
        warm.due(state, Signal(n, 0, None, lambda: 1.0, lambda: torch.zeros(3), None))
        assert state.asked == n
    assert warm.voting
    assert not WarmupThen(3, Every(2)).voting


def test_which_rounds_are_plain_means() -> None:
    assert [WarmupThen(2, Every(1)).warm_up(step) for step in (1, 2, 3)] == [True, True, False]
    assert not Every(1).warm_up(1)
    assert not WarmupThen(0, Every(1)).warm_up(1)


def test_what_remembers_nothing_has_no_state() -> None:
    for when in (Every(2), Never(), WarmupThen(2, Every(2))):
        assert when.init(LAYOUT, 4) == NoState() == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Every(0), "Every: expected n >= 1, found 0"),
        (lambda: Every(-3), "Every: expected n >= 1, found -3"),
        (lambda: WarmupThen(-1, Never()), "WarmupThen: expected steps >= 0, found -1"),
        (lambda: WarmupThen(1, WarmupThen(1, Never())), "expected another trigger to follow the warm-up"),
    ],
)
def test_arguments_out_of_range_are_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert said in str(caught.value)


def states(comm: Comm, strategy: Strategy, steps: int) -> list[tuple[Any, Any]]:
    trainer = Trainer(strategy, comm)
    found = []
    for _ in range(steps):
        trainer.step()
        found.append((trainer.weights(), trainer.sync.state_dict()["fragments"][0]["state"]))
    return found


def test_rounds_of_a_warm_up_are_plain_means_whatever_the_strategy() -> None:
    warm = WarmupThen(5, Never())
    swarm = simulate(lambda comm: states(comm, PSOPS(when=warm), 7), 3)
    # PSO-PS keeps BatchNorm's statistics local by default, so the means of the parameters are compared.
    mean = simulate(lambda comm: states(comm, LocalSGD(when=Every(1)), 7), 3)
    parameters = 5 * 8 + 8 + 8 + 8 + 8 * 3 + 3
    for rank in range(3):
        for step in range(5):
            assert same(swarm[rank][step][0][:parameters], mean[rank][step][0][:parameters])
        assert not same(swarm[rank][6][0], mean[rank][6][0])


def test_the_strategy_starts_from_the_end_of_the_warm_up() -> None:
    found = simulate(lambda comm: states(comm, PSOPS(when=WarmupThen(3, Every(2))), 3), 3)
    start = simulate(lambda comm: Trainer(PSOPS(), comm).sync.state_dict()["fragments"][0]["state"], 3)[0]
    parameters = 5 * 8 + 8 + 8 + 8 + 8 * 3 + 3
    for rank in range(3):
        weights, state = found[rank][2]
        assert same(found[rank][1][1], start)  # untouched before
        assert same(state["leader"], found[0][2][1]["leader"])
        assert same(state["leader"][:parameters], weights[:parameters])
        assert same(state["best"], state["leader"])
        assert not state["velocity"].any()
        assert state["owner"] == -1


def test_a_warm_up_of_the_whole_run_ends_with_the_mean() -> None:
    found = simulate(lambda comm: run(comm, PSOPS(when=WarmupThen(9, Every(2))), 4), 2)
    assert same(found[0].weights[-1], found[1].weights[-1])


def test_triggers_compare_and_show_themselves_by_their_arguments() -> None:
    assert Every(3) == Every(3) != Every(4)
    assert repr(WarmupThen(10, Every(8))) == "WarmupThen(steps=10, then=Every(n=8))"
    assert dataclasses.replace(LocalSGD(), when=Every(3)) == LocalSGD(when=Every(3))
