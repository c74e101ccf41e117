"""Slopes of what a run holds: known ones are found, their intervals hold, and restarts do not move them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.chaos.growth import INTERVAL, STARTING, growth_of, growth_text
from swarmstep.chaos.slopes import Slope, slope_of

STEP = INTERVAL / 3600  # hours
Life = list[tuple[float, float]]


def alike(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """Return values of mean 0 and deviation 1, each of which is much like the one before."""
    noise = rng.normal(size=count) * np.sqrt(1 - rho**2)
    values = [float(rng.normal())]
    for new in noise[1:]:
        values.append(rho * values[-1] + float(new))
    return np.array(values)


def lives(rng: np.random.Generator, slope: float, rho: float, counts: list[int]) -> list[Life]:
    """Return lives of these lengths, each with a level of its own."""
    found: list[Life] = []
    for count in counts:
        times = rng.random() + STEP * np.arange(count)
        values = 100 * rng.normal() + slope * times + alike(rng, count, rho)
        found.append([*zip(times.tolist(), values.tolist(), strict=True)])
    return found


@given(st.floats(-50, 50), st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3), st.integers(24, 40))
def test_lines_of_one_slope_have_that_slope(slope: float, levels: list[float], count: int) -> None:
    found = slope_of([[(t * STEP, level + slope * t * STEP) for t in range(count)] for level in levels])
    assert found
    assert found.lives == len(levels)
    for value in found[:3]:
        assert value == pytest.approx(slope, abs=1e-6)


def test_the_slope_is_that_of_least_squares_with_a_level_for_each_life() -> None:
    series = lives(np.random.default_rng(1), 3.0, 0.5, [30, 50, 80])
    rows = [(place, time, value) for place, life in enumerate(series) for time, value in life]
    matrix = np.array([[time, *(float(place == other) for other in range(3))] for place, time, _ in rows])
    solution = np.linalg.lstsq(matrix, np.array([value for *_, value in rows]), rcond=None)[0]
    found = slope_of(series)
    assert found
    assert found.slope == pytest.approx(float(solution[0]))


@pytest.mark.parametrize("counts", [[60, 90, 120, 150, 300, 20, 40, 70, 200, 110], [900]], ids=["many", "one"])
@pytest.mark.parametrize("rho", [0.0, 0.9])
def test_the_interval_holds_though_neighbours_are_alike(rho: float, counts: list[int]) -> None:
    rng, tries = np.random.default_rng(2), 80
    found = [slope_of(lives(rng, -4.0, rho, counts)) for _ in range(tries)]
    covered = sum(slope is not None and slope.low <= -4.0 <= slope.high for slope in found)
    assert 0.86 * tries <= covered  # 95 % of them, with three deviations to spare


def test_too_few_values_have_no_slope() -> None:
    assert slope_of([]) is None
    assert slope_of([[], [(0.0, 1.0)]]) is None
    assert slope_of([[(0.1 * t, 1.0) for t in range(23)]]) is None
    assert slope_of([[(0.1 * t, 1.0) for t in range(24)]]) == Slope(0.0, 0.0, 0.0, 1)


def sampled(path: Path, worker: Callable[[str, float], float]) -> None:
    """Write an hour of samples of 3 workers, of which 0 is started again every 20 minutes."""
    with path.open("w") as file:
        for step in range(720):
            hour = step * STEP
            for name in (f"0.{int(3 * hour)}", "1.0", "2.0"):
                row = {"time": 3600 * hour, "who": f"worker {name}", "memory": worker(name, hour), "threads": 8}
                file.write(json.dumps({**row, "files": 20}) + "\n")
            file.write(json.dumps({"time": 3600 * hour, "who": "store", "keys": 60 + step % 7}) + "\n")
        file.write('{"time": 36')


def test_restarts_and_the_first_minutes_do_not_pass_for_growth(tmp_path: Path) -> None:
    """Memory grows for 2 minutes after each start, and then not any more."""

    def memory(name: str, hour: float) -> float:
        age = hour - int(name.partition(".")[2]) / 3
        return 300 + 50 * min(1.0, 3600 * age / 120)

    sampled(tmp_path / "growth.jsonl", memory)
    growth = growth_of(tmp_path / "growth.jsonl")
    row = growth["worker, memory"]
    assert (row["slope"], row["mean"], row["lives"]) == (pytest.approx(0.0), pytest.approx(350.0), 5)
    assert row["hours"] == pytest.approx(1 - STARTING / 3600, abs=2 * STEP)
    keys = growth["store, keys"]
    assert keys["low"] < 0 < keys["high"]
    assert 62 < keys["mean"] < 64
    assert not [line for line in growth_text(growth) if "grows" in line]


def test_a_leak_is_found(tmp_path: Path) -> None:
    sampled(tmp_path / "growth.jsonl", lambda name, hour: 300 + 12 * hour + 0.1 * np.sin(1e3 * hour))
    growth = growth_of(tmp_path / "growth.jsonl")
    assert growth["worker, memory"]["slope"] == pytest.approx(12, rel=0.05)
    line = next(line for line in growth_text(growth) if "worker, memory" in line)
    assert line.endswith("it grows")


def test_a_run_without_samples_has_no_growth(tmp_path: Path) -> None:
    assert growth_of(tmp_path / "growth.jsonl") == {}
