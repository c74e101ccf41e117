"""The virtual clock against runs worked out by hand, and against a clock of each worker and event."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.comm.metered import Call
from swarmstep.errors import UsageError
from swarmstep.network.link import Link
from swarmstep.network.trace import Trace
from swarmstep.network.virtual_clock import Failures, Stragglers, VirtualClock, parse_failures, parse_stragglers

FAST = Link(1e12)
SLOW = Link(1e8)
MILLION = 4_000_000  # bytes of a million float32


def trace_of(*rounds: tuple[int, int], calls: tuple[Call, ...] = (Call("mean", MILLION, 4),)) -> Trace:
    trace = Trace()
    for started, landed in rounds:
        trace.add(started, landed, calls)
    return trace


def every(n: int, steps: int, size: int = 4) -> Trace:
    calls = (Call("gather", 16, size), Call("mean", MILLION, size))
    return trace_of(*((k, k) for k in range(n, steps + 1, n)), calls=calls)


def cost_of(verb: str, sent: int, size: int = 4, link: Link = SLOW) -> float:
    return VirtualClock(link, size, 0.0).cost(Call(verb, sent, size))


# Time


@given(st.integers(1, 8), st.floats(0, 1), st.integers(0, 50))
def test_without_rounds_it_is_steps_times_compute(workers: int, compute: float, steps: int) -> None:
    seconds = VirtualClock(SLOW, workers, compute).seconds(Trace(), steps)
    np.testing.assert_allclose(seconds, compute * np.arange(steps + 1), atol=1e-12)


def test_one_worker_takes_its_own_work_only() -> None:
    seconds = VirtualClock(SLOW, 1, 1.0, round_compute=0.25).seconds(every(2, 4, size=1), 4, probe_seconds=1.0)
    np.testing.assert_allclose(seconds, [0, 1, 2.75, 3.75, 5.5])


def test_a_round_adds_its_cost_to_the_step_at_which_it_happens() -> None:
    clock = VirtualClock(SLOW, 4, 0.1)
    cost = clock.cost(Call("gather", 16, 4)) + clock.cost(Call("mean", MILLION, 4))
    seconds = clock.seconds(every(3, 9), 10)
    np.testing.assert_allclose(seconds, [0.1 * k + cost * (k // 3) for k in range(11)])


def test_gradient_averaging_pays_at_every_step() -> None:
    clock = VirtualClock(SLOW, 4, 0.1)
    seconds = clock.seconds(trace_of(*((k, k) for k in range(1, 8))), 7)
    np.testing.assert_allclose(np.diff(seconds), 0.1 + cost_of("mean", MILLION))


def test_a_delay_hides_the_wire() -> None:
    cost = cost_of("mean", MILLION)
    clock = VirtualClock(SLOW, 4, cost / 4)
    hidden = clock.seconds(trace_of((10, 15), (20, 25)), 30)
    np.testing.assert_allclose(hidden, cost / 4 * np.arange(31))
    partly = clock.seconds(trace_of((10, 13), (20, 23)), 30)  # 3 of the 4 steps that the message takes
    assert partly[13] - partly[12] == pytest.approx(2 * cost / 4)
    assert partly[-1] == pytest.approx(hidden[-1] + 2 * cost / 4)
    at_once = clock.seconds(trace_of((10, 10), (20, 20)), 30)
    assert at_once[-1] == pytest.approx(hidden[-1] + 2 * cost)


def test_rounds_under_way_queue_for_the_wire() -> None:
    cost = cost_of("mean", MILLION)
    seconds = VirtualClock(SLOW, 4, cost / 10).seconds(trace_of((1, 6), (2, 7)), 10)
    assert seconds[6] == pytest.approx(1.1 * cost)
    assert seconds[7] == pytest.approx(2.1 * cost)  # not 1.2: the wire is free at 1.1


def test_a_round_at_once_waits_for_the_wire_too() -> None:
    cost = cost_of("mean", MILLION)
    seconds = VirtualClock(SLOW, 4, cost / 10).seconds(trace_of((2, 2), (1, 9)), 10)
    assert seconds[2] == pytest.approx(2.1 * cost)


def test_what_is_under_way_at_the_end_lands_there() -> None:
    cost = cost_of("mean", MILLION)
    seconds = VirtualClock(SLOW, 4, cost / 10, round_compute=1.0).seconds(trace_of((9, 14), (11, 16)), 10)
    np.testing.assert_allclose(seconds[9:], [0.9 * cost, 1.9 * cost + 1.0])


def test_own_work_of_a_round_is_done_where_it_lands() -> None:
    seconds = VirtualClock(FAST, 1, 1.0, round_compute=0.5).seconds(trace_of((2, 4), calls=()), 5)
    np.testing.assert_allclose(seconds, [0, 1, 2, 3, 4.5, 5.5])


@given(st.integers(1, 30), st.integers(2, 5), st.floats(0, 0.1))
def test_fewer_rounds_take_no_longer(n: int, factor: int, compute: float) -> None:
    clock = VirtualClock(SLOW, 4, compute, round_compute=0.01)
    often, seldom = (clock.seconds(every(each, 60), 60) for each in (n, factor * n))
    assert (seldom <= often + 1e-9).all()


# Stragglers


def test_a_straggler_sets_the_pace() -> None:
    alone = VirtualClock(SLOW, 4, 0.1).seconds(Trace(), 8)
    np.testing.assert_allclose(VirtualClock(SLOW, 4, 0.1, stragglers="slow:1:3").seconds(Trace(), 8), 3 * alone)
    np.testing.assert_allclose(VirtualClock(SLOW, 4, 0.1, stragglers="slow:4:3").seconds(Trace(), 8), 3 * alone)


def test_the_others_wait_for_a_straggler_at_the_start_and_where_the_round_lands() -> None:
    """Fast workers land at 6 s, when the round starts; they do step 7 until 7 s, the slow one until 9 s."""
    clock = VirtualClock(FAST, 2, 1.0, stragglers="slow:1:3")
    np.testing.assert_allclose(clock.seconds(trace_of((2, 6), calls=()), 7), 3.0 * np.arange(8))
    one = Call("mean", MILLION, 4)
    slow = VirtualClock(SLOW, 2, 0.1, stragglers="slow:1:3")
    expected = 0.6 + slow.cost(one)  # from when the slow one is at step 2
    assert slow.seconds(trace_of((2, 3), calls=(one,)), 3)[3] == pytest.approx(max(expected, 0.9))


def test_lognormal_steps_have_the_measured_mean() -> None:
    factors = Stragglers(sigma=0.5).draw(20_000, 8, np.random.default_rng(1))
    assert factors.mean() == pytest.approx(1.0, abs=0.01)
    assert np.log(factors).std() == pytest.approx(0.5, abs=0.01)


@given(st.integers(0, 2**40), st.floats(0.01, 1.0))
def test_the_slowest_of_a_group_counts(seed: int, sigma: float) -> None:
    """Rounds at every step wait for the slowest each time, so they take longest; W alone take the slowest sum."""

    def spread(rounds: Trace) -> float:
        clock = VirtualClock(FAST, 4, 1.0, stragglers=f"lognormal:{sigma}", seed=seed)
        return float(clock.seconds(rounds, 40)[-1])

    each = [(k, k) for k in range(1, 41)]
    apart, seldom, often = Trace(), trace_of(*each[9::10], calls=()), trace_of(*each, calls=())
    assert spread(apart) <= spread(seldom) + 1e-9
    assert spread(seldom) <= spread(often) + 1e-9


def test_lognormal_rounds_against_a_clock_of_each_worker() -> None:
    clock = VirtualClock(SLOW, 3, 0.5, stragglers="lognormal:0.4", seed=7)
    rounds, steps = [(3, 3), (5, 8), (7, 7), (9, 12)], 12
    factors = Stragglers(sigma=0.4).draw(steps, 3, np.random.default_rng(_seed_of(clock)))
    now, free, arrives, expected = [0.0] * 3, 0.0, {}, [0.0]
    for step in range(1, steps + 1):
        now = [t + 0.5 * float(f) for t, f in zip(now, factors[step - 1], strict=True)]
        for started, landed in rounds:
            if landed == step and started < landed:
                now = [max(t, arrives[started]) for t in now]
        for started, landed in rounds:
            if started == step:
                free = arrives[started] = max(*now, free) + cost_of("mean", MILLION)
                now = [free] * 3 if landed == started else now
        expected.append(max(now))
    landing = sorted(rounds, key=lambda this: this[1])
    np.testing.assert_allclose(clock.seconds(trace_of(*landing), steps), expected)


def _seed_of(clock: VirtualClock) -> int:
    from swarmstep.seeding import mix

    return mix(clock.seed, "stragglers")


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock(SLOW, 3, 0.5, stragglers="lognormal:0.4")
    whole = clock.seconds(every(7, 100), 100)
    monkeypatch.setattr("swarmstep.network.virtual_clock.BLOCK", 9)
    np.testing.assert_allclose(clock.seconds(every(7, 100), 100), whole)


# Failures


def test_failures_cost_the_pause_and_the_work_since_the_last_round() -> None:
    """On average: with failures at a rate r, a stretch of s seconds takes (e^(r s) - 1) (1 / r + pause)."""
    clock = VirtualClock(FAST, 4, 0.01, failures="90:5", seed=3)  # r = 0.1 a second for all four
    rounds = trace_of(*((k, k) for k in range(500, 1_000_001, 500)), calls=())
    seconds = clock.seconds(rounds, 1_000_000)
    assert seconds[-1] / 2000 == pytest.approx((math.exp(0.5) - 1) * (10 + 5), rel=0.05)
    assert (np.diff(seconds) > 0).all()


def test_more_rounds_lose_less() -> None:
    clock = VirtualClock(FAST, 4, 0.01, failures="90:5")
    seldom, often = (
        clock.seconds(trace_of(*((k, k) for k in range(n, 20_001, n)), calls=()), 20_000)[-1] for n in (1000, 10)
    )
    assert often < seldom


@given(st.floats(1, 300), st.floats(0, 60), st.integers(0, 99))
def test_failures_only_delay(rate: float, pause: float, seed: int) -> None:
    without = VirtualClock(SLOW, 4, 0.01).seconds(every(5, 50), 50)
    with_failures = VirtualClock(SLOW, 4, 0.01, failures=f"{rate}:{pause}", seed=seed).seconds(every(5, 50), 50)
    lost = with_failures - without
    assert (np.diff(lost) >= -1e-9).all()
    assert lost[0] == 0
    moved = np.flatnonzero(np.diff(lost) > 1e-9)  # before the first step after a round, which is all done again
    assert (moved % 5 == 0).all()


def test_a_group_that_would_never_go_on_is_an_error() -> None:
    clock = VirtualClock(FAST, 100, 1.0, failures="3600:0")
    with pytest.raises(UsageError, match=r"^failures '3600:0': expected at most 7 .* every 0.01 s .* lower RATE"):
        clock.seconds(Trace(), 100)


# Seeds and specs


def test_seeds_reproduce() -> None:
    def seconds(seed: int) -> np.ndarray:
        return VirtualClock(SLOW, 4, 0.1, stragglers="lognormal:0.3", failures="60:5", seed=seed).seconds(
            every(5, 99), 99
        )

    np.testing.assert_array_equal(seconds(1), seconds(1))
    assert (seconds(1)[1:] != seconds(2)[1:]).all()


def test_specs() -> None:
    assert parse_stragglers(None, 4) == Stragglers()
    assert parse_stragglers("lognormal:0.3", 4) == Stragglers(sigma=0.3)
    assert parse_stragglers("slow:2:1.5", 4) == Stragglers(slow=2, factor=1.5)
    assert parse_failures(None) is None
    assert parse_failures("0.5:60") == Failures(0.5, 60.0)


@pytest.mark.parametrize(
    "spec",
    [
        "lognormal",
        "lognormal:0",
        "lognormal:nan",
        "lognormal:9",
        "lognormal:1:2",
        "slow:1",
        "slow:0:2",
        "slow:5:2",
        "slow:1:0.5",
        "slow:1:inf",
        "slow:x:2",
        "fast:1",
        ":",
    ],
)
def test_wrong_stragglers(spec: str) -> None:
    with pytest.raises(
        UsageError, match=r"^stragglers '.*' of 4 workers: expected lognormal:SIGMA .*FACTOR <= 1000$"
    ):
        VirtualClock(SLOW, 4, 0.1, stragglers=spec)


@pytest.mark.parametrize("spec", ["", "1", "0:5", "-1:5", "1:-5", "1:inf", "nan:1", "1:2:3", "a:b"])
def test_wrong_failures(spec: str) -> None:
    with pytest.raises(UsageError, match=r"^failures '.*': expected RATE:SECONDS, .*goes on$"):
        VirtualClock(SLOW, 4, 0.1, failures=spec)


@pytest.mark.parametrize(
    ("workers", "compute", "round_compute"),
    [(0, 0.1, 0.0), (4, math.nan, 0.0), (4, -1.0, 0.0), (4, 0.1, math.inf)],
)
def test_wrong_numbers(workers: int, compute: float, round_compute: float) -> None:
    with pytest.raises(UsageError, match=r"^virtual clock: "):
        VirtualClock(SLOW, workers, compute, round_compute)
