"""Gossip on a ring against its mixing matrix."""

from __future__ import annotations

import numpy as np
import pytest

from rounds import Array, Game, game, play
from swarmstep import GossipRing
from swarmstep.errors import UsageError


def matrix(workers: int, reach: int, here: list[int]) -> Array:
    """The mixing matrix: absent workers give nothing and take the mean of the neighbours they hear."""
    M = np.zeros((workers, workers))
    for i in range(workers):
        near = {(i + d) % workers for d in range(-reach, reach + 1)}
        if i in here:
            for j in near:
                M[i, j if j in here else i] += 1 / len(near)
        else:
            heard = [j for j in near if j in here] or [i]
            M[i, heard] = 1 / len(heard)
    return M


def oracle(g: Game, reach: int) -> Array:
    x, history = np.tile(g.start, (g.workers, 1)), []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(g.workers) if not g.absent(r, i)]
        x[here] += drift[here]
        x = matrix(g.workers, reach, here) @ x
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("reach", [1, 2, 3])
def test_oracle(workers: int, reach: int) -> None:
    g = game(workers)
    expected = oracle(g, reach)
    played = play(GossipRing(reach), g)
    np.testing.assert_allclose(played.weights, expected, atol=1e-12)
    np.testing.assert_allclose(played.results[0], expected[-1].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("reach", [1, 2])
def test_finished_workers(reach: int) -> None:
    g = game(6, finished={1: 1, 2: 3, 5: 2})
    np.testing.assert_allclose(play(GossipRing(reach), g).weights, oracle(g, reach), atol=1e-12)


@pytest.mark.parametrize("here", [[0, 1, 2, 3, 4], [0, 2, 3]])
def test_those_who_take_part_are_mixed_doubly_stochastically(here: list[int]) -> None:
    M = matrix(5, 1, here)[np.ix_(here, here)]
    np.testing.assert_allclose(M.sum(axis=0), 1)
    np.testing.assert_allclose(M.sum(axis=1), 1)


@pytest.mark.parametrize("workers", [2, 3, 4, 5])
def test_on_the_complete_graph_it_is_averaging(workers: int) -> None:
    g = game(workers)
    played = play(GossipRing(reach=workers // 2), g).weights
    expected = g.start + np.cumsum(g.drift.mean(axis=1), axis=0)
    for i in range(workers):
        np.testing.assert_allclose(played[:, i], expected, atol=1e-12)


@pytest.mark.parametrize(("workers", "sent"), [(1, 0), (2, 1), (3, 2), (6, 2)])
def test_traffic(workers: int, sent: int) -> None:
    assert (play(GossipRing(), game(workers)).sent == sent * 7 * 8).all()


def test_range() -> None:
    with pytest.raises(UsageError, match="reach"):
        GossipRing(0)
