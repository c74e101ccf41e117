"""PSO-PS on a ring: leaders, routes, and the particles against an oracle that knows everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from rounds import Array, Game, game, play
from swarmstep import PSOPS, Comm, Metered, simulate
from swarmstep.errors import UsageError
from swarmstep.seeding import generator, mix
from swarmstep.strategies.parts.neighbours import fetch, ring_leaders


def lbest(scores: Array, i: int) -> int:
    near = sorted({(i - 1) % len(scores), i, (i + 1) % len(scores)})
    best = min(near, key=lambda j: scores[j])
    return best if np.isfinite(scores[best]) else i


def oracle(g: Game, best_of: str, decay: float = 0.0) -> tuple[Array, Array]:
    """Particles and, for each round, the global best."""
    count, size = g.workers, len(g.start)
    x, v = np.tile(g.start, (count, 1)), np.zeros((count, size))
    best, best_loss, leaders = x.copy(), np.full(count, np.inf), x.copy()
    history, tops = [], []
    for r, drift in enumerate(g.drift):
        gone = np.array([g.absent(r, i) for i in range(count)])
        x[~gone] += drift[~gone]
        f = np.where(gone, np.inf, g.losses[r])
        there = np.sort(f[~gone])
        best_loss = best_loss + decay * max(0.0, there[(len(there) - 1) // 2] - best_loss.min())
        better = f < best_loss
        best[better], best_loss[better] = x[better], f[better]
        scores, position = (f, x) if best_of == "round" else (best_loss, best)
        leaders = np.stack([position[lbest(scores, i)] for i in range(count)])
        tops.append(position[scores.argmin()].copy())
        for i in range(count):
            seed = mix(0, r + 1, i, "pso")
            rs = torch.rand((2, 2), generator=generator(seed), dtype=torch.float64).numpy()
            r1, r2 = np.repeat(rs[0], [2, size - 2]), np.repeat(rs[1], [2, size - 2])
            v[i] = 0.3 * v[i] + 0.08 * r1 * (best[i] - x[i]) + 0.5 * r2 * (leaders[i] - x[i])
        x = x + v
        history.append(x.copy())
    return np.stack(history), np.stack(tops)


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("best", ["round", "historical"])
@pytest.mark.parametrize("finished", [{}, {0: 2}])
def test_oracle(workers: int, best: str, finished: dict[int, int]) -> None:
    g = game(workers, rounds=10, finished=finished if workers > 1 else {})
    weights, tops = oracle(g, best)
    played = play(PSOPS(neighbours="ring", best=best), g)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(tops[-1], (workers, 1)), atol=1e-12)


def test_oracle_with_decay() -> None:
    g = game(5, rounds=12)
    played = play(PSOPS(neighbours="ring", best="historical", best_decay=0.2), g)
    np.testing.assert_allclose(played.weights, oracle(g, "historical", 0.2)[0], atol=1e-12)


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("best", ["round", "historical"])
def test_up_to_three_workers_the_ring_is_everybody(workers: int, best: str) -> None:
    g = game(workers)
    ring, everybody = (play(PSOPS(neighbours=n, best=best), g) for n in ("ring", "all"))
    np.testing.assert_array_equal(ring.weights, everybody.weights)
    np.testing.assert_array_equal(ring.results, everybody.results)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_every_order_of_losses_is_routed(size: int) -> None:
    """Each rank gets its leader's vector, in two permutes at most; a round sends at most 4/3 P a worker."""
    orders = list(itertools.permutations(range(size)))[:120]

    def train(world: Comm) -> list[int]:
        comm, sent = Metered(world), []
        for order in orders:
            leaders = ring_leaders(torch.tensor(order, dtype=torch.float64))
            wanted = {i for i, leader in enumerate(leaders) if leader != i}
            before = comm.traffic.sent
            found = fetch(torch.tensor([float(comm.rank)]), leaders, wanted, comm)
            assert (found is None) == (comm.rank not in wanted)
            assert found is None or found.item() == leaders[comm.rank]
            sent.append(comm.traffic.sent - before)
        return sent

    sent = np.array(simulate(train, size))
    assert sent.max() <= 2 * 4
    assert (sent.mean(axis=0) <= 4 / 3 * 4 + 1e-9).all()


def test_nothing_travels_that_is_known() -> None:
    """With historical bests, a round in which nobody improves moves no weights."""
    losses = np.array([[3.0, 1.0, 4.0, 2.0, 5.0], [9.0] * 5, [9.0, 9.0, 9.0, 9.0, 1.5]])
    g = game(5, rounds=3, losses=losses)
    sent = play(PSOPS(neighbours="ring", best="historical"), g).sent.sum(axis=1)
    assert sent[0] > 0
    assert sent[1] == 0
    assert 0 < sent[2] < sent[0]


def test_mean_traffic_from_random_losses() -> None:
    """The card says 7/6 P a worker."""
    g = game(30, rounds=60, losses=np.random.default_rng(1).normal(size=(60, 30)), seed=1)
    sent = play(PSOPS(neighbours="ring"), g).sent.mean() / (7 * 8)
    assert abs(sent - 7 / 6) < 0.02


def test_choice() -> None:
    with pytest.raises(UsageError, match="neighbours: expected one of all, ring"):
        PSOPS(neighbours="star")
