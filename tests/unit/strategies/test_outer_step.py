"""How far the outer step goes: against bisection, in limit cases, and on a quadratic whose best gain is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rounds import Game, game, play
from swarmstep import DiLoCo, InformedSwarm, LocalSGD, Strategy
from swarmstep.errors import UsageError
from swarmstep.strategies.parts.outer_step import MOST, OuterStep, spread

MEASURED: list[Strategy] = [InformedSwarm(trust="uniform"), DiLoCo(reach="measured")]


def reach(step: OuterStep, d: torch.Tensor, u: torch.Tensor, d2: float, radius: float = 1.0) -> Any:
    return step.measured_reach(torch.zeros_like(d), u, d, d2, radius, lambda part: part)


def moved(step: OuterStep, d: torch.Tensor, u: torch.Tensor, share: float) -> torch.Tensor:
    """Return where a step from 0 with this share ends."""
    x, anchor, velocity = torch.zeros_like(d), torch.zeros_like(d), u.clone()
    step.take(x, anchor, velocity, d, share)
    assert torch.equal(x, anchor)
    return x


vectors = st.lists(st.floats(-4, 4), min_size=3, max_size=3).map(lambda x: torch.tensor(x, dtype=torch.float64))
steps = st.builds(OuterStep, st.floats(0.1, 2.0), st.floats(0.0, 0.99), st.booleans())


@given(steps, vectors, vectors, st.floats(1.0, 8.0), st.floats(1.0, MOST))
def test_it_is_the_longest_step_within_the_radius(
    step: OuterStep, d: torch.Tensor, u: torch.Tensor, wider: float, radius: float
) -> None:
    d2 = float(d @ d) * wider
    share, grown = reach(step, d, u, d2, radius)
    limit = grown * math.sqrt(d2)
    assert 0 <= share <= 1
    assert 1 <= grown <= MOST
    assert float(moved(step, d, u, share).norm()) <= limit * (1 + 1e-9) + 1e-12
    if share < 1:  # the limit is reached, and the whole step would have gone past it
        assert float(moved(step, d, u, 1.0).norm()) > limit * (1 - 1e-9)
        assert float(moved(step, d, u, min(1.0, share + 1e-4)).norm()) >= limit * (1 - 1e-6)


@pytest.mark.parametrize(
    ("cosine", "before", "after"),
    [
        (1.0, 1.0, math.exp(0.05)),
        (1.0, 9.9, MOST),
        (0.95, 3.0, 3.0),
        (0.0, 3.0, 3.0 * math.exp(-0.95)),
        (-1.0, 3.0, 1.0),
    ],
)
def test_the_radius_grows_while_the_swarm_keeps_its_direction(cosine: float, before: float, after: float) -> None:
    d, u = torch.tensor([[2.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]], dtype=torch.float64)
    assert reach(OuterStep(0.7, 0.7), d, u, 4.0, before).radius == pytest.approx(after, rel=1e-12)


@pytest.mark.parametrize("zero", ["d", "u", "both"])
def test_without_a_step_or_a_velocity_nothing_is_divided_by_0(zero: str) -> None:
    d, u = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    d, u = d * (zero == "u"), u * (zero == "d")
    share, radius = reach(OuterStep(0.7, 0.9), d, u, float(d @ d))
    assert 0 <= share <= 1
    assert radius == 1
    assert moved(OuterStep(0.7, 0.9), d, u, share).isfinite().all()


def test_a_codec_may_make_the_mean_longer_than_the_workers_steps() -> None:
    d, u = torch.tensor([2.0, 0.0]), torch.tensor([1.0, 0.0])
    share, _ = reach(OuterStep(0.7, 0.9), d, u, 1.0)
    assert share == 0
    assert torch.equal(moved(OuterStep(0.7, 0.9), d, u, share), d)  # never less than the mean's step


def test_the_spread_counts_who_is_in_the_consensus() -> None:
    lengths = torch.tensor([1.0, 4.0, math.nan, math.inf]).double()
    assert spread(lengths, [1.0, 0.5, 0.0, 0.0]) == pytest.approx((1 + 2) / 1.5)
    assert spread(lengths, [0.0] * 4) == 0
    wild = torch.tensor([1.0, 1.1, 0.9, 100.0]).double()
    assert spread(wild, [1.0] * 4) == pytest.approx((1 + 1.1 + 0.9 + 4) / 4)  # cut to 2 medians


def same_drift(workers: int) -> Game:
    """All workers find the same in each round."""
    g = game(workers)
    return g._replace(drift=np.repeat(g.drift[:, :1], workers, axis=1))


@pytest.mark.parametrize("strategy", MEASURED)
def test_workers_that_are_alike_are_averaged(strategy: Strategy) -> None:
    g = same_drift(3)
    expected = play(LocalSGD(), g).weights
    np.testing.assert_allclose(play(strategy, g).weights, expected, atol=1e-7)  # D2 - d.d is rounding


@pytest.mark.parametrize("strategy", MEASURED)
def test_workers_that_differ_much_take_the_whole_step(strategy: Any) -> None:
    g = game(4)
    noise = np.random.default_rng(0).normal(size=g.drift.shape)
    noise -= noise.mean(axis=1, keepdims=True)
    g = g._replace(drift=0.01 * g.drift + noise)
    fixed = play(dataclasses.replace(strategy, reach="fixed"), g).weights
    np.testing.assert_array_equal(play(strategy, g).weights, fixed)


def descend(step: OuterStep, reach_of: Any, rate: float, noise: float) -> float:
    """Return the loss x'Ax / 2 after 40 rounds, in which each of 4 workers goes the share `rate` a to a noisy 0.

    The curvatures a are 1 to 1/64.
    """
    a = 2.0 ** -torch.arange(7).double()
    random = torch.Generator().manual_seed(3)
    x, u, radius = torch.full((7,), 4.0).double(), torch.zeros(7).double(), 1.0
    for _ in range(40):
        steps = rate * a * (noise * torch.randn(4, 7, generator=random) - x)
        share, radius = reach_of(x, u, x + steps.mean(0), float(steps.square().sum(1).mean()), radius, lambda y: y)
        step.take(x.clone(), x, u, x + steps.mean(0), share)
    return float((a * x * x).sum() / 2)


def test_on_a_quadratic_it_is_never_the_worst() -> None:
    swarm, diloco = OuterStep(0.7, 0.7), OuterStep(0.7, 0.9)
    ways: list[tuple[OuterStep, Any]] = [
        (swarm, swarm.measured_reach),
        (swarm, lambda *given: (0.0, 1.0)),  # the mean
        (diloco, lambda *given: (1.0, 1.0)),
    ]
    slow, usual, noisy = (
        [descend(step, reach_of, rate, noise) for step, reach_of in ways]
        for rate, noise in ((0.02, 0.1), (0.3, 0.5), (0.9, 4.0))
    )
    assert slow[2] < slow[0] < 0.6 * slow[1]  # all agree, momentum is right: the radius grows
    assert usual[0] < 0.6 * usual[1]
    assert noisy[1] < noisy[0] < noisy[2]  # nothing is left but noise, and the mean is best


@pytest.mark.parametrize("kind", [InformedSwarm, DiLoCo])
def test_other_words_are_refused(kind: Any) -> None:
    with pytest.raises(UsageError, match="reach: expected one of measured, fixed, found 'far'"):
        kind(reach="far")
