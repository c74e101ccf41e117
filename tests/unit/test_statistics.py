"""Intervals over seeds: against printed tables, values worked out by hand, and drawn samples."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from swarmstep.compare.statistics import Estimate, Range, estimate, paired, quantile, seeds_to_tell
from swarmstep.errors import UsageError

# Two-sided 95 % points of Student's t, from the tables at the end of any textbook of statistics.
TABLE = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    11: 2.201, 12: 2.179, 15: 2.131, 20: 2.086, 25: 2.060, 29: 2.045, 30: 2.042, 40: 2.021, 60: 2.000, 120: 1.980,
}  # fmt: skip

values = st.floats(-1e6, 1e6)
by_seed = st.dictionaries(st.integers(0, 9), values, max_size=8)


@pytest.mark.parametrize(("freedom", "t"), TABLE.items())
def test_the_quantile_is_that_of_the_tables(freedom: int, t: float) -> None:
    assert round(quantile(freedom), 3) == t


def test_the_quantile_tends_to_that_of_the_normal_distribution() -> None:
    assert quantile(100_000) == pytest.approx(1.959964, abs=1e-4)


def test_without_scipy_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(UsageError, match=r'^comparisons need scipy, .*: pip install "swarmstep\[compare]"$'):
        quantile.__wrapped__(3)


def test_an_interval_by_hand() -> None:
    # Differences to the mean -1, 0, 1: variance 1, standard error 1 / sqrt(3), t for 2 degrees of freedom 4.3027.
    result = estimate([1.0, 2.0, 3.0])
    assert result.mean == 2.0
    assert result.count == 3
    assert result.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)
    assert 2.0 - result.low == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_the_interval_holds_the_truth_in_95_of_100_samples() -> None:
    samples = np.random.default_rng(4).normal(3.0, 2.0, (4000, 4))
    held = sum(result.low <= 3.0 <= result.high for result in map(estimate, samples.tolist()))
    assert abs(held / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_seed_has_no_interval_and_none_no_mean() -> None:
    one = estimate([0.5])
    assert (one.mean, one.count) == (0.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert math.isnan(estimate([]).mean)
    assert estimate([]).count == 0


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_value_that_is_not_finite_leaves_nothing_to_say(odd: float) -> None:
    result = estimate([1.0, odd, 2.0])
    assert all(map(math.isnan, result[:3]))
    assert result.count == 3


def test_equal_values_have_an_interval_without_width() -> None:
    assert estimate([0.25] * 5) == Estimate(0.25, 0.25, 0.25, 5)


@given(by_seed, by_seed)
def test_pairs_are_of_the_seeds_in_common(a: dict[int, float], b: dict[int, float]) -> None:
    result = paired(a, b)
    differences = [b[seed] - a[seed] for seed in range(10) if seed in a and seed in b]
    assert result.count == len(differences)
    assert not differences or result.mean == pytest.approx(np.mean(differences), abs=1e-6)
    assert len(differences) < 2 or result.low <= result.mean <= result.high


@given(by_seed, by_seed)
def test_pairs_turned_around_change_the_sign(a: dict[int, float], b: dict[int, float]) -> None:
    forth, back = paired(a, b), paired(b, a)
    expected = (-back.mean, -back.high, -back.low, back.count)
    assert forth == pytest.approx(expected, nan_ok=True, abs=1e-6)


@given(st.lists(st.tuples(values, values, values), min_size=2, max_size=9))
def test_what_both_find_hard_does_not_matter(rows: list[tuple[float, float, float]]) -> None:
    a, b = {i: row[0] for i, row in enumerate(rows)}, {i: row[1] for i, row in enumerate(rows)}
    hard = {i: row[2] for i, row in enumerate(rows)}
    alike = paired({i: a[i] + hard[i] for i in a}, {i: b[i] + hard[i] for i in b})
    assert alike == pytest.approx(paired(a, b), abs=1e-6)


# Within a range

TRANSFORMS: dict[Range, tuple[Any, Any]] = {"positive": (np.log, np.exp), "share": (special.logit, special.expit)}


@pytest.mark.parametrize(
    ("within", "sample"),
    [
        ("positive", [2.0, 3.0, 7.0]),
        ("positive", [1e-9, 4e-9]),
        ("share", [0.97, 0.99, 0.98]),
        ("share", [0.0, 1.0]),
    ],
)
def test_an_interval_within_a_range_is_that_of_scipy_on_its_scale(within: Range, sample: list[float]) -> None:
    """The slope is taken by differences; SciPy gives the interval, NumPy and SciPy the scale."""
    from scipy import stats  # a second, which only the process that runs this should wait

    there, back = TRANSFORMS[within]
    mean = float(np.mean(sample))
    step = 1e-6 * mean
    slope = (there(mean + step) - there(mean - step)) / (2 * step)
    ends = stats.t.interval(0.95, len(sample) - 1, loc=there(mean), scale=stats.sem(sample) * slope)
    assert estimate(sample, within) == pytest.approx((mean, *back(ends), len(sample)), rel=1e-6)


@given(st.lists(st.floats(0, 1) | st.sampled_from([0.0, 1.0]), min_size=2, max_size=6))
def test_an_interval_stays_within_its_range_and_holds_the_mean(sample: list[float]) -> None:
    share, positive = estimate(sample, "share"), estimate([1e3 * value for value in sample], "positive")
    assert 0 <= share.low <= share.mean <= share.high <= 1
    assert 0 <= positive.low <= positive.mean <= positive.high < math.inf
    flipped = estimate([1 - value for value in sample], "share")
    assert 1 - flipped.high == pytest.approx(share.low, abs=1e-6)


@pytest.mark.parametrize("within", ["positive", "share"])
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_equal_values_have_no_width_also_at_a_bound(value: float, within: Range) -> None:
    assert estimate([value] * 4, within) == Estimate(value, value, value, 4)
    assert math.isnan(estimate([value], within).low)


def test_a_small_spread_leaves_the_plain_interval() -> None:
    sample = [0.5, 0.5001, 0.4999]
    assert estimate(sample, "share") == pytest.approx(estimate(sample), abs=1e-6)
    assert estimate(sample, "positive") == pytest.approx(estimate(sample), abs=1e-6)


def test_what_lies_outside_has_no_bounds_to_keep() -> None:
    assert estimate([-1.0, 2.0, 3.0], "positive") == estimate([-1.0, 2.0, 3.0])
    assert estimate([0.5, 1.5], "share") == estimate([0.5, 1.5])


@pytest.mark.parametrize("within", ["positive", "share"])
def test_skewed_samples_are_held_at_least_as_often_as_without_a_range(within: Range) -> None:
    rng = np.random.default_rng(5)
    samples = rng.lognormal(0, 0.3, (4000, 3)) if within == "positive" else rng.beta(20, 1, (4000, 3))
    truth = math.exp(0.3**2 / 2) if within == "positive" else 20 / 21
    held = [
        [one.low <= truth <= one.high for one in (estimate(row, within), estimate(row))]
        for row in samples.tolist()
    ]
    ours, plain = np.mean(held, axis=0)
    assert ours > plain
    assert ours == pytest.approx(0.945, abs=4 * math.sqrt(0.95 * 0.05 / 4000))


# How many seeds


@pytest.mark.parametrize(
    ("effect", "seeds"),  # Cohen's d of a paired t test, as pwr.t.test of R and G*Power answer
    [(0.2, 199), (0.3, 90), (0.5, 34), (0.8, 15), (1.0, 10)],
)
def test_the_seeds_that_published_tables_give(effect: float, seeds: int) -> None:
    assert seeds_to_tell(effect, 1.0) == seeds
    assert seeds_to_tell(7 * effect, 7.0) == seeds


@pytest.mark.parametrize("effect", [0.4, 1.0, 2.5])
def test_so_many_seeds_find_the_difference_in_80_of_100_comparisons(effect: float) -> None:
    from scipy import stats

    count = seeds_to_tell(effect, 1.0)
    rng = np.random.default_rng(6)
    found = {n: np.mean(stats.ttest_1samp(rng.normal(effect, 1.0, (20000, n)), 0, axis=1).pvalue < 0.05)
             for n in (count - 1, count) if n > 1}  # fmt: skip
    error = 4 * math.sqrt(0.8 * 0.2 / 20000)
    assert found[count] >= 0.8 - error
    assert found.get(count - 1, 0.0) < 0.8 + error


def test_the_extremes_of_a_spread() -> None:
    assert seeds_to_tell(1.0, 0.0) == seeds_to_tell(1.0, 1e-300) == 2
    many = seeds_to_tell(1e-4, 1.0)
    assert many == pytest.approx((1.959964 + 0.841621) ** 2 * 1e8, rel=1e-3)
