"""Triggers that follow from the count of steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep import Every, LocalSGD, Never, When
from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Signal
from swarmstep.when import NoState

LAYOUT = Layout(("x",), (3,), 3)


def asked(when: When, steps: int, rank: int = 0) -> list[int]:
    """Return the steps after which a round is due."""
    state = when.init(LAYOUT, 4)
    signals = [
        Signal(n, 0, 0.1, lambda: 1.0, lambda: torch.zeros(3), None, LAYOUT, rank=rank)
        for n in range(1, steps + 1)
    ]
    return [signal.step for signal in signals if when.due(state, signal)]


@given(st.integers(1, 9), st.integers(0, 60))
def test_every_nth_step(n: int, steps: int) -> None:
    assert asked(Every(n), steps) == list(range(n, steps + 1, n))


def test_each_rank_has_steps_of_its_own() -> None:
    when = Every((2, 3, 1, 5))
    assert [asked(when, 10, rank) for rank in range(4)] == [asked(Every(n), 10) for n in (2, 3, 1, 5)]
    assert when.per_rank
    assert when.period == 0
    assert not Every(2).per_rank


def test_never() -> None:
    assert asked(Never(), 100) == []


def test_what_remembers_nothing_has_no_state() -> None:
    for when in (Every(2), Never()):
        assert when.init(LAYOUT, 4) == NoState() == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Every(0), "Every: expected n >= 1, found 0"),
        (lambda: Every(-3), "Every: expected n >= 1, found -3"),
        (lambda: Every((2, 0)), "Every: expected n >= 1, found (2, 0)"),
        (lambda: Every(()), "Every: expected n >= 1, found ()"),
        (
            lambda: Every((1, 2, 3)).init(LAYOUT, 4),
            "Every: expected a number of steps for each of the 4 workers, found 3: (1, 2, 3)",
        ),
    ],
)
def test_arguments_out_of_range_are_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert said in str(caught.value)


def test_triggers_compare_and_show_themselves_by_their_arguments() -> None:
    assert Every(3) == Every(3) != Every(4)
    assert repr(Every(8)) == "Every(n=8)"
    assert dataclasses.replace(LocalSGD(), when=Every(3)) == LocalSGD(when=Every(3))
