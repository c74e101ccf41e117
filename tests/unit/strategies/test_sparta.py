"""SPARTA against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rounds import Array, Game, game, play, weighted
from swarmstep import SPARTA, LocalSGD
from swarmstep.errors import UsageError
from swarmstep.seeding import generator


def oracle(g: Game, stride: int) -> Array:
    """The offsets are drawn as there; what is done with them is written anew."""
    x, n, history = np.tile(g.start, (g.workers, 1)), len(g.start) - g.buffers, []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        x[here] += drift[here]
        offset = int(torch.randint(stride, (), generator=generator(0, r + 1, "sparta")))
        for k in range(n):
            if k % stride == offset:
                x[:, k] = g.mean(r, x[:, k])
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("stride", [1, 2, 3, 50])
def test_oracle(workers: int, stride: int) -> None:
    g = game(workers, buffers=2)
    played = play(SPARTA(stride), g)
    np.testing.assert_allclose(played.weights, oracle(g, stride), atol=1e-12)
    np.testing.assert_allclose(played.results[0], played.weights[-1].mean(axis=0), atol=1e-12)


def test_weights_of_workers_and_those_that_have_finished() -> None:
    g = weighted(game(5, finished={0: 1, 3: 2}))
    np.testing.assert_allclose(play(SPARTA(2), g).weights, oracle(g, 2), atol=1e-12)


def test_with_stride_1_it_is_local_sgd() -> None:
    g = game(4)
    assert np.array_equal(play(SPARTA(1), g).weights, play(LocalSGD(), g).weights)


def test_each_weight_is_averaged_equally_often_and_no_other_travels() -> None:
    g = game(2, rounds=400, size=10)
    played = play(SPARTA(5), g)
    met = (played.weights[:, 0] == played.weights[:, 1]).sum(axis=0)
    assert (abs(met - 80) < 5 * 8).all()  # 5 standard deviations of a binomial with 400 rounds and p = 1/5
    assert (met == np.tile(met[:5], 2)).all()
    assert (played.sent == (2 + 1) * 8).all()  # a half of 2 (2 + 1) numbers: the mean's weight travels with it


def test_range() -> None:
    with pytest.raises(UsageError, match="stride"):
        SPARTA(0)
