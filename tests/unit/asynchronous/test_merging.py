"""What becomes of late results: against the equations in NumPy, and what it does to a bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from swarmstep.asynchronous import AsGrad, Direction, Outer, Quorum, Simulator
from swarmstep.errors import UsageError

from .quadratics import FOUR, SECONDS, ZERO, server

VECTORS = arrays(np.float64, 5, elements=st.floats(-3, 3).map(lambda x: round(x, 3)))


def heloco(d: np.ndarray, m: np.ndarray, keep: float, turn: float, shrink: float, most: float, kappa: float):
    """The formulas of one block."""
    u, v = d / np.linalg.norm(d), m / np.linalg.norm(m)
    c = u @ v
    conf = np.linalg.norm(d) / (np.linalg.norm(d) + kappa * np.linalg.norm(m))
    if c >= keep:
        return d
    if c < 0:
        return d - min(shrink * -c * conf, most) * c * np.linalg.norm(d) * v
    share = min(turn * (1 - c) * conf, 1)
    turned = (1 - share) * u + share * v
    return np.linalg.norm(d) * turned / np.linalg.norm(turned)


@given(
    d=VECTORS, m=VECTORS, keep=st.floats(0, 1), turn=st.floats(0, 3), shrink=st.floats(0, 3), most=st.floats(0, 1)
)
def test_the_formulas(d: np.ndarray, m: np.ndarray, keep: float, turn: float, shrink: float, most: float) -> None:
    """In two blocks, each on its own."""
    direction = Direction(keep, turn, shrink, most, 0.5, (2, 3))
    found = direction.turned(torch.tensor(d), torch.tensor(m)).numpy()
    for block in (slice(0, 2), slice(2, 5)):
        expected = d[block]
        if np.any(d[block]) and np.any(m[block]):
            cosine = d[block] @ m[block] / np.linalg.norm(d[block]) / np.linalg.norm(m[block])
            if min(abs(cosine - keep), abs(cosine)) < 1e-9:
                continue  # on either side of a threshold
            expected = heloco(d[block], m[block], keep, turn, shrink, most, 0.5)
            if cosine >= 0:
                assert np.linalg.norm(found[block]) == pytest.approx(np.linalg.norm(d[block]))
        assert found[block] == pytest.approx(expected, abs=1e-9)


def test_at_the_ends_of_its_range() -> None:
    d, m = torch.tensor([1.0, 1.0]), torch.tensor([-2.0, 0.0])
    none, all_of_it = Direction(0.0, 1.0, 0.0, 1.0, 0.0), Direction(0.0, 1.0, 100.0, 1.0, 0.0)
    assert torch.equal(none.turned(d, m), d)
    assert torch.allclose(all_of_it.turned(d, m), torch.tensor([0.0, 1.0]), atol=1e-6)
    toward = Direction(1.0, 100.0, 0.0, 0.0, 0.0)
    assert torch.allclose(toward.turned(d, -m), torch.tensor([2.0**0.5, 0.0]))
    assert torch.equal(toward.turned(d, None), d)
    assert torch.equal(toward.turned(d, torch.zeros(2)), d)
    with pytest.raises(UsageError, match="direction: expected sizes that add up to 2, found 3"):
        Direction(1.0, 1.0, 1.0, 1.0, 1.0, (3,)).turned(d, m)


def test_who_is_in_time_is_left_alone() -> None:
    """tau = 0: rounds of all, and one worker alone, are the same with it, bit for bit."""
    direction, outer = Direction(1.0, 1.0, 1.0, 1.0, 0.0), Outer(0.3, 0.5)
    for plain, with_it, workers in (
        (AsGrad(1, FOUR, outer), AsGrad(1, FOUR, outer, direction=direction), 1),
        (Quorum(4, FOUR, outer, 4), Quorum(4, FOUR, outer, 4, direction=direction), 4),
    ):
        found = []
        for method in (plain, with_it):
            simulator = Simulator(method, ZERO + 7, SECONDS[:workers])
            simulator.run(events=60)
            found.append(simulator.result())
        assert torch.equal(*found)


def test_who_is_late_is_turned() -> None:
    """One coordinate: a late D against the momentum is taken off it, and the server goes on without it."""
    all_of_it = Direction(0.0, 0.0, 1e9, 1.0, 0.0)
    simulator = Simulator(AsGrad(2, FOUR, Outer(0.1, 0.5), direction=all_of_it), ZERO, (1.0, 2.5))
    simulator.run(events=300)
    against = Simulator(AsGrad(2, FOUR, Outer(0.1, 0.5)), ZERO, (1.0, 2.5))
    against.run(events=300)
    assert float(simulator.result()) < float(against.result())  # more than before the fast worker's, 0
    assert server(simulator).entered == server(against).entered


def test_a_dampened_momentum() -> None:
    """HeLoCo's outer step: m = b m + (1 - b) G, x = x - s (G + b m)."""
    outer, x, memory = Outer(0.4, 0.8, dampening=0.8), ZERO, {}
    m = expected = 0.0
    for t in range(1, 9):
        m = 0.8 * m + 0.2 * np.sin(t)
        expected -= 0.4 * (np.sin(t) + 0.8 * m)
        x = outer.step(x, torch.tensor([np.sin(t)]), memory, t)
        assert float(x) == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(
    "arguments", [(-0.1, 0, 0, 0, 0), (0, -1, 0, 0, 0), (0, 0, -1, 0, 0), (0, 0, 0, 1.1, 0), (0, 0, 0, 0, -1)]
)
def test_wrong_arguments(arguments: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="keep and most 0 to 1, turn, shrink and kappa of at least 0"):
        Direction(*arguments)


def test_a_direction_needs_a_momentum() -> None:
    direction = Direction(0.5, 1.0, 1.0, 1.0, 1.0)
    with pytest.raises(UsageError, match="direction: expected an outer optimizer with momentum"):
        AsGrad(2, FOUR, Outer(1.0), direction=direction)
    with pytest.raises(UsageError, match="direction: expected an outer optimizer with momentum"):
        Quorum(2, FOUR, Outer(1.0), 1, direction=direction)
