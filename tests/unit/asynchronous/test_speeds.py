"""How long a job takes: against a clock that ticks, and in the simulator."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarmstep.asynchronous import Disturbance, Simulator, Speeds
from swarmstep.errors import CheckpointError, UsageError

from .quadratics import ZERO, asgrad

FACTORS = st.sampled_from([0.5, 1.0, 2.0, 4.0, math.inf])


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (0.0, 2.0),  # before
        (9.0, 1.0 + 3.0),  # one second of work is left as it begins, at a third of the speed
        (10.0, 6.0),
        (18.0, 2.0 + (2.0 - 2.0 / 3.0)),  # it ends within the job
        (20.0, 2.0),
    ],
)
def test_a_disturbance(start: float, expected: float) -> None:
    speeds = Speeds((2.0, 2.0), disturbances=(Disturbance(0, 10.0, 20.0, 3.0),))
    assert speeds.duration(0, start, 1.0, 0) == pytest.approx(expected, abs=1e-12)
    assert speeds.duration(1, start, 1.0, 0) == 2.0


def test_who_stands_still_goes_on_afterwards() -> None:
    speeds = Speeds((1.0,), disturbances=(Disturbance(0, 3.0, 10.0, math.inf),))
    assert speeds.duration(0, 2.5, 2.0, 0) == 0.5 + 7.0 + 1.5


@given(st.integers(0, 4000), st.integers(4001, 9900))
@example(1104, 8170)  # 11.04 + (81.70 - 11.04) < 81.70
def test_who_stands_still_goes_on_whatever_is_rounded(start: int, end: int) -> None:
    speeds = Speeds((1.0,), disturbances=(Disturbance(0, 0.0, end / 100, math.inf),))
    assert speeds.duration(0, start / 100, 2.0, 0) == pytest.approx((end - start) / 100 + 2.0)


@given(
    disturbances=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 40), FACTORS), max_size=3),
    start=st.integers(0, 60),
    work=st.integers(1, 12),
)
def test_against_a_clock_that_ticks(disturbances: list[tuple[int, int, float]], start: int, work: int) -> None:
    """In ticks of 1/4 s, in which nothing changes; those that overlap multiply."""
    made = tuple(Disturbance(0, s / 4, (s + length) / 4, factor) for s, length, factor in disturbances)
    left, tick, taken = work * 0.75, start, 0.0
    while left > 0:
        factor = math.prod(f for s, length, f in disturbances if s <= tick < s + length)
        if left * factor <= 0.25:
            taken += left * factor
            break
        left, tick, taken = left - 0.25 / factor, tick + 1, taken + 0.25
    assert Speeds((0.75,), disturbances=made).duration(0, start / 4, work, 0) == pytest.approx(taken, abs=1e-9)


def test_jitter_is_a_function_of_worker_and_job() -> None:
    speeds, other = Speeds((1.0, 1.0), 0.5, seed=3), Speeds((1.0, 1.0), 0.5, seed=4)
    found = [speeds.duration(worker, 0.0, 1.0, number) for worker in (0, 1) for number in range(200)]
    assert found == [speeds.duration(worker, 9.0, 1.0, number) for worker in (0, 1) for number in range(200)]
    assert len(set(found)) == 400
    assert 0.5 <= min(found) < 0.52
    assert 1.48 < max(found) <= 1.5
    assert sum(found) / 400 == pytest.approx(1.0, abs=0.05)
    assert speeds.duration(0, 0.0, 1.0, 0) != other.duration(0, 0.0, 1.0, 0)


def test_a_slower_worker_in_the_simulator() -> None:
    speeds = Speeds((1.0, 1.0), disturbances=(Disturbance(1, 10.0, 20.0, 5.0),))
    simulator = Simulator(asgrad(workers=2), ZERO, speeds)
    simulator.run(until=30.0)
    assert [simulator.states[w].done for w in (0, 1)] == [30, 22]
    with pytest.raises(CheckpointError, match=r"speeds\.disturbances: expected"):
        Simulator(asgrad(workers=2), ZERO, (1.0, 1.0)).load_state_dict(simulator.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": ()}, "expected seconds above 0"),
        ({"seconds": (1.0, math.inf)}, "expected seconds above 0"),
        ({"jitter": 1.0}, "jitter 1.0"),
        ({"disturbances": (Disturbance(2, 0.0, 1.0, 2.0),)}, "expected worker 0 to 1"),
        ({"disturbances": (Disturbance(0, 1.0, 1.0, 2.0),)}, "start < end"),
        ({"disturbances": (Disturbance(0, 0.0, math.inf, 2.0),)}, "end < inf"),
        ({"disturbances": (Disturbance(0, 0.0, 1.0, 0.0),)}, "factor above 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Speeds(**{"seconds": (1.0, 1.0), **arguments})  # type: ignore[arg-type]


def test_jitter_is_given_once() -> None:
    with pytest.raises(UsageError, match=r"jitter: expected it in Speeds, which was given, found 0\.5 beside it"):
        Simulator(asgrad(), ZERO, Speeds((1.0,) * 4), jitter=0.5)
