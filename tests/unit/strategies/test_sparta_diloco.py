"""SPARTA between the rounds of DiLoCo against its definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rounds import Array, Game, game, play, weighted
from swarmstep import SPARTA, DiLoCo, Every, SPARTADiLoCo
from swarmstep.errors import UsageError
from swarmstep.seeding import generator


def oracle(g: Game, outer_every: int, stride: int, s: float, w: float) -> tuple[Array, Array]:
    """Return the weights after each round, and the model at the end; the offsets are drawn as there."""
    n = len(g.start) - g.buffers
    x, anchor, u, history = np.tile(g.start, (g.workers, 1)), g.start.copy(), np.zeros(n), []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        x[here] += drift[here]
        mean = g.mean(r, x)
        if (r + 1) % outer_every == 0:
            gradient = (anchor - mean)[:n]
            u = w * u + gradient
            anchor = np.concatenate([anchor[:n] - s * (gradient + w * u), mean[n:]])
            x[:] = anchor
        else:
            met = np.arange(n) % stride == int(torch.randint(stride, (), generator=generator(0, r + 1, "sparta")))
            x[:, :n][:, met] = mean[:n][met]
        history.append(x.copy())
    return np.stack(history), anchor


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize(("outer_every", "stride"), [(1, 2), (2, 3), (3, 1), (7, 2)])
def test_oracle(workers: int, outer_every: int, stride: int) -> None:
    g = game(workers, buffers=2)
    played = play(SPARTADiLoCo(outer_every, stride, 0.6, 0.5), g)
    weights, anchor = oracle(g, outer_every, stride, 0.6, 0.5)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(anchor, (workers, 1)), atol=1e-12)


def test_weights_of_workers_and_those_that_have_finished() -> None:
    g = weighted(game(5, finished={0: 1, 3: 2}))
    weights, _ = oracle(g, 2, 2, 0.7, 0.9)
    np.testing.assert_allclose(play(SPARTADiLoCo(2, 2), g).weights, weights, atol=1e-12)


def test_it_is_diloco_or_sparta_where_only_one_of_them_has_rounds() -> None:
    g = game(4)
    assert np.array_equal(play(SPARTADiLoCo(1), g).weights, play(DiLoCo(), g).weights)
    assert np.array_equal(play(SPARTADiLoCo(7, 2), g).weights, play(SPARTA(2), g).weights)
    settings = SPARTADiLoCo(1, lr=None, momentum=None)
    assert np.array_equal(play(settings, g).weights, play(DiLoCo(lr=None, momentum=None), g).weights)


def test_bytes_are_those_of_a_part_and_at_each_outer_step_of_all() -> None:
    sent = play(SPARTADiLoCo(3, 5), game(2, size=10)).sent
    assert (sent[[0, 1, 3, 4]] == (2 + 1) * 8).all()  # a half of 2 (2 + 1) numbers: the mean's weight goes along
    assert (sent[[2, 5]] == (10 + 1) * 8).all()


def test_defaults() -> None:
    assert SPARTADiLoCo() == SPARTADiLoCo(outer_every=500, stride=200, lr=0.7, momentum=0.9, when=Every(1))


@pytest.mark.parametrize("fields", [{"outer_every": 0}, {"stride": 0}, {"momentum": 1.0}, {"lr": -0.1}])
def test_ranges(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        SPARTADiLoCo(**fields)
