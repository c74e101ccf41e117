"""Who gets how much work: against the equations, by hand and for any speeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.data.allocator import Allocator, Cost, observe, solve, whole
from swarmstep.data.stream import Stream
from swarmstep.errors import CheckpointError, UsageError

SPEEDS = (1.0, 2.0, 4.0, 0.5)  # examples a second
units = st.floats(1e-6, 1e6)
starts = st.floats(0.0, 1e3)


def known(start: float, unit: float) -> Cost:
    return Cost(start, unit, known=True, units=1, seconds=start + unit)


def measured(allocator: Allocator, speeds: Sequence[float], start: Sequence[float] | None = None) -> list[float]:
    """Return what workers of these speeds take for their present shares."""
    begun = start or [0.0] * len(speeds)
    return [c + b / s for c, b, s in zip(begun, allocator.shares, speeds, strict=True)]


def test_one_update_lands_on_the_exact_shares_and_stays() -> None:
    """d_j = s_j / sum s; the time of an epoch falls from max d / s = 0.5 to 1 / sum s = 0.1333."""
    total = 1500
    allocator = Allocator(4, total)
    assert max(measured(allocator, SPEEDS)) / total == 0.5
    for _ in range(5):
        assert allocator.update(measured(allocator, SPEEDS)) == [200, 400, 800, 100]
    assert max(measured(allocator, SPEEDS)) / total == pytest.approx(1 / 7.5)


@pytest.mark.parametrize("start", [(0.5, 0.1, 0.0, 0.3), (1.0, 1.0, 1.0, 1.0)])
def test_a_start_up_cost_is_found_by_the_second_update(start: tuple[float, ...]) -> None:
    """t = c + b / s: b_j = (T - c_j) s_j with T = (B + sum c s) / sum s; here to rounding of whole examples."""
    total = 7500
    allocator = Allocator(4, total, band=0.0)
    c, s = np.array(start), np.array(SPEEDS)
    best = (total + c @ s) / s.sum()
    for _ in range(2):
        allocator.update(measured(allocator, SPEEDS, start))
    np.testing.assert_allclose(allocator.shares, (best - c) * s, atol=1)
    assert max(measured(allocator, SPEEDS, start)) < best + 1 / min(SPEEDS)
    settled = list(allocator.shares)
    assert allocator.update(measured(allocator, SPEEDS, start)) == settled


def test_from_one_amount_of_work_the_cost_is_proportional_and_says_so() -> None:
    first = observe(None, 10, 3.0)
    assert (first.start, first.unit, first.known) == (0.0, 0.3, False)
    assert not observe(first, 10, 3.0).known
    second = observe(first, 20, 5.0)
    assert (second.start, second.unit, second.known) == (1.0, 0.2, True)


def test_what_does_not_fit_two_amounts_changes_the_pace_and_keeps_the_form() -> None:
    cost = observe(observe(None, 10, 3.0), 20, 5.0)  # 1 + 0.2 b
    slower = observe(cost, 10, 9.0, smoothing=1.0)  # less work, more time: disturbed
    assert (slower.start, slower.unit) == pytest.approx((3.0, 0.6))
    assert observe(cost, 10, 9.0, smoothing=0.5).of(10) == pytest.approx((3.0 + 9.0) / 2)


@given(st.integers(1, 10**6), st.lists(st.tuples(starts, units), min_size=1, max_size=12))
def test_all_take_equally_long_but_those_at_the_least(more: int, costs: list[tuple[float, float]]) -> None:
    found, total = [known(*cost) for cost in costs], len(costs) + more
    shares = solve(total, found)
    assert math.fsum(shares) == pytest.approx(total)
    times = [cost.start + cost.unit * b for cost, b in zip(found, shares, strict=True)]
    free = [t for t, b in zip(times, shares, strict=True) if b > 1.0]
    assert free
    assert min(shares) >= 1.0
    assert free == pytest.approx([max(free)] * len(free), rel=1e-6)
    assert all(t >= min(free) * (1 - 1e-6) for t in times)  # who has the least would not be faster with more


@given(st.data(), st.integers(1, 3), st.lists(st.tuples(starts, units), min_size=1, max_size=7))
def test_with_limits_the_slowest_is_done_as_soon_as_can_be(
    data: st.DataObject, least: int, costs: list[tuple[float, float]]
) -> None:
    """The limits hold, and T is the smallest time by which all together can have done the work, by bisection."""
    found = [known(*cost) for cost in costs]
    most = [least + data.draw(st.integers(0, 60)) for _ in costs]
    total = data.draw(st.integers(least * len(costs), sum(most)))
    shares = solve(total, found, least, most)
    assert math.fsum(shares) == pytest.approx(total)
    assert all(least <= b <= m for b, m in zip(shares, most, strict=True))

    def done(time: float) -> float:
        return sum(min(m, max(least, (time - c.start) / c.unit)) for c, m in zip(found, most, strict=True))

    low, high = 0.0, max(c.of(m) for c, m in zip(found, most, strict=True))
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if done(middle) >= total * (1 - 1e-12) else (middle, high)
    best = max(high, *(c.of(least) for c in found))
    assert max(c.of(b) for c, b in zip(found, shares, strict=True)) == pytest.approx(best, rel=1e-6)
    parts = whole(total, shares, least, most)
    assert sum(parts) == total
    assert all(least <= b <= m for b, m in zip(parts, most, strict=True))
    assert all(abs(part - share) < 1 + 1e-6 * share for part, share in zip(parts, shares, strict=True))


def test_limits_by_hand() -> None:
    """Speeds 4, 2, 1, 1 and 80 examples are 40, 20, 10, 10; the first holds 24, the others share the rest."""
    allocator = Allocator(4, 80, most=[24, 64, 64, 64])
    assert allocator.shares == [20, 20, 20, 20]
    assert allocator.update([5.0, 10.0, 20.0, 20.0]) == [24, 28, 14, 14]
    assert Allocator(3, 40, most=[4, 64, 64]).shares == [4, 18, 18]
    silent = Allocator(3, 100, most=[30, 30, math.inf])
    assert silent.update([1.0, 1.0, math.inf]) == [30, 30, 40]  # nobody else can hold it
    for wrong, words in (
        (
            {"total": 100, "most": [30, 30, 30]},
            "each can hold at most 30, 30, 30; .* sum of at least 100, found 90",
        ),
        ({"total": 50, "most": [1, 60, 60], "least": 2}, "expected limits of at least 2"),
        ({"total": 50, "most": [60, 60]}, "expected a limit for each of 3 workers, found 2"),
    ):
        with pytest.raises(UsageError, match=words):
            Allocator(3, **wrong)


@given(st.integers(0, 10**6), st.lists(st.one_of(units, st.just(math.inf)), min_size=1, max_size=40))
def test_largest_remainders_lose_nothing(more: int, costs: list[float]) -> None:
    total = len(costs) + more
    shares = solve(total, [known(0.0, unit) for unit in costs])
    parts = whole(total, shares)
    assert sum(parts) == total
    assert min(parts) >= 1
    assert all(abs(part - share) < 1 + 1e-6 * share for part, share in zip(parts, shares, strict=True))


def test_remainders_by_hand() -> None:
    assert whole(10, [3.4, 3.3, 3.3]) == [4, 3, 3]
    assert whole(10, [2.5, 2.5, 2.5, 2.5]) == [3, 3, 2, 2]  # the authors' code gives 3, 3, 3, 3 or 2, 2, 2, 2
    assert whole(4, [3.7, 0.2, 0.1]) == [2, 1, 1]
    with pytest.raises(UsageError, match="cannot share 2 among 3 workers"):
        whole(2, [1.0, 0.5, 0.5])


def test_each_worker_gets_the_least() -> None:
    allocator = Allocator(3, 300, least=20)
    assert allocator.update([1.0, 1.0, 1000.0]) == [140, 140, 20]
    assert allocator.update([1.0, 1.0, math.inf]) == [140, 140, 20]
    assert allocator.of(70) == [25, 25, 20]
    with pytest.raises(UsageError, match="cannot share 50 among 3 workers; expected at least 20 for each"):
        allocator.of(50)


def test_a_disturbed_worker_gets_less_and_recovers() -> None:
    allocator = Allocator(4, 400)
    calm, disturbed = [1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.1]
    for _ in range(8):
        allocator.update(measured(allocator, disturbed))
    assert allocator.shares[3] < 16
    for _ in range(12):
        allocator.update(measured(allocator, calm))
    assert max(measured(allocator, calm)) < 1.06 * 100


def test_a_silent_worker_keeps_one_and_comes_back() -> None:
    allocator = Allocator(3, 300)
    assert allocator.update([1.0, 1.0, math.inf]) == [150, 149, 1]
    assert allocator.update([1.5, 1.49, math.nan]) == [150, 149, 1]  # not measured
    assert allocator.update([1.5, 1.49, 0.01]) == [100, 100, 100]
    assert Allocator(2, 10).update([math.inf, math.inf]) == [5, 5]


def test_a_group_that_changes_is_divided_by_what_is_known_of_those_who_stay() -> None:
    """Of speeds 1, 2, 4, 0.5 the others stay when the second leaves; a newcomer counts as the mean speed."""
    allocator = Allocator(4, 1500)
    allocator.update(measured(allocator, SPEEDS))
    assert allocator.regroup([0, 2, 3], 1100) == [200, 800, 100]
    mean = 5.5 / 3
    shares = allocator.regroup([2, None, 0, 1], 1600)  # speeds 0.5, the mean, 1, 4
    np.testing.assert_allclose(shares, 1600 * np.array([0.5, mean, 1, 4]) / (5.5 + mean), atol=1)
    slow = [s / speed for s, speed in zip(shares, (0.5, 0.1, 1.0, 4.0), strict=True)]
    for _ in range(20):
        slow = [s / speed for s, speed in zip(allocator.update(slow), (0.5, 0.1, 1.0, 4.0), strict=True)]
    np.testing.assert_allclose(allocator.shares, 1600 * np.array([0.5, 0.1, 1, 4]) / 5.6, rtol=0.06)


def test_a_round_that_is_taken_again_measures_what_was_done_in_it() -> None:
    """Worker 1 is lost in a round: the seconds that come then are of the shares before."""
    allocator = Allocator(3, 300)
    assert allocator.regroup([0, 2, None], 300, worked=True) == [100, 100, 100]
    # Speeds 1, 1/3, and their mean.
    assert allocator.update([100.0, 300.0, 0.0]) == [150, 50, 100]
    assert [cost and cost.unit for cost in allocator.costs] == [1.0, 3.0, None]
    saved, other = allocator.state_dict(), Allocator(3, 300)
    other.load_state_dict(saved)
    assert other.update([1.0, 2.0, 3.0]) == allocator.update([1.0, 2.0, 3.0])


@given(st.integers(0, 10**6))
def test_small_changes_change_nothing(seed: int) -> None:
    noise, allocator = np.random.default_rng(seed), Allocator(4, 1500)
    settled = list(allocator.update(measured(allocator, SPEEDS)))
    for _ in range(50):
        allocator.update((np.array(measured(allocator, SPEEDS)) * noise.uniform(0.98, 1.02, 4)).tolist())
        assert allocator.shares == settled


@pytest.mark.parametrize(("start", "equal"), [((0.0, 0.0, 0.0, 0.0), 0.4), ((50.0, 5.0, 0.0, 20.0), 0.5)])
def test_noise_of_a_tenth_costs_little(start: tuple[float, ...], equal: float) -> None:
    """The best time over the mean one, with 128 examples among speeds 1, 1, 1, 1/3; `equal`: without a balance."""
    c, s = np.array(start), np.array([1, 1, 1, 1 / 3])
    best = (128 + c @ s) / s.sum()
    assert best / max(c + 32 / s) < equal + 0.01
    for seed in range(10):
        noise, allocator, spent = np.random.default_rng(seed), Allocator(4, 128), list[float]()
        for _ in range(60):
            seconds = c + np.array(allocator.shares) / s
            spent.append(seconds.max())
            allocator.update((seconds * noise.lognormal(0.0, 0.1, 4)).tolist())
        assert best / np.mean(spent[4:]) > 0.9


@given(st.lists(st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3), max_size=6), st.integers(0, 5))
def test_shares_follow_from_the_measurements_also_from_a_checkpoint(rows: list[list[float]], cut: int) -> None:
    whole_run, resumed = Allocator(3, 50), Allocator(3, 50)
    for i, row in enumerate(rows):
        if i == cut:
            saved, resumed = resumed.state_dict(), Allocator(3, 50)
            resumed.load_state_dict(saved)
        assert whole_run.update(row) == resumed.update(row)
        assert sum(whole_run.shares) == 50


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot share 3 among 4"):
        Allocator(4, 3)
    for wrong in ({"smoothing": 0.0}, {"smoothing": 1.1}, {"band": 1.0}, {"band": -0.1}):
        with pytest.raises(UsageError, match="balance: expected smoothing"):
            Allocator(2, 8, **wrong)
    with pytest.raises(UsageError, match="expected seconds of 2 workers, found 3"):
        Allocator(2, 8).update([1.0, 1.0, 1.0])
    with pytest.raises(CheckpointError, match="expected 2 shares of sum 8"):
        Allocator(2, 8).load_state_dict(Allocator(2, 9).state_dict())


@given(st.integers(1, 40), st.lists(st.lists(st.integers(1, 9), min_size=3, max_size=3), min_size=1, max_size=20))
def test_stretches_of_any_length_show_each_example_once_in_a_pass(size: int, lengths: list[list[int]]) -> None:
    place, seen = 0, list[torch.Tensor]()
    streams = [Stream(size, 5) for _ in range(3)]
    for row in lengths:
        for stream, length in zip(streams, row, strict=True):
            seen.append(stream.draw(place, place + length))
            place += length
    drawn = torch.cat(seen)
    for one in drawn.split(size)[: len(drawn) // size]:
        assert one.sort().values.equal(torch.arange(size))
    rest = drawn[len(drawn) // size * size :]
    assert len(rest.unique()) == len(rest)


def test_a_stream_says_what_it_expects() -> None:
    with pytest.raises(UsageError, match="at least 1 example"):
        Stream(0, 1)
    with pytest.raises(UsageError, match="0 <= start < stop of the stream, found 3 and 3"):
        Stream(4, 1).draw(3, 3)
