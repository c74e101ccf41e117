"""FedPSO against its equations: PSO with the probe's loss as fitness."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rounds import Array, Game, game, play
from swarmstep import PSOPS, FedPSO, Never, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.seeding import generator, mix


def oracle(g: Game) -> tuple[Array, Array]:
    x, v = np.tile(g.start, (g.workers, 1)), np.zeros((g.workers, len(g.start)))
    best, best_loss = x.copy(), np.full(g.workers, np.inf)
    history = []
    for r, drift in enumerate(g.drift):
        x += drift
        fitness = (x**2).mean(axis=1)
        for i in range(g.workers):
            if fitness[i] < best_loss[i]:
                best[i], best_loss[i] = x[i], fitness[i]
        leader = x[fitness.argmin()].copy()
        for i in range(g.workers):
            seed = mix(0, r + 1, i, "pso")
            r1, r2 = torch.rand((2, 1), generator=generator(seed), dtype=torch.float64)[:, 0].tolist()
            v[i] = 0.3 * v[i] + 0.7 * r1 * (best[i] - x[i]) + 1.4 * r2 * (leader - x[i])
        x = x + v
        history.append(x.copy())
    return np.stack(history), leader


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_oracle(workers: int) -> None:
    g = game(workers)
    weights, leader = oracle(g)
    played = play(FedPSO(), g)
    np.testing.assert_allclose(played.weights, weights, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(leader, (workers, 1)), atol=1e-12)


def test_it_is_a_pso_ps() -> None:
    g = game(3)
    other = PSOPS(0.3, 0.7, 1.4, random="vector", fitness="probe")
    np.testing.assert_array_equal(play(FedPSO(), g).weights, play(other, g).weights)


def test_it_needs_a_probe() -> None:
    with pytest.raises(UsageError, match="FedPSO needs a probe"):
        simulate(lambda comm: Synchronizer(torch.nn.Linear(1, 1), FedPSO(when=Never()), comm), 1)


def test_range() -> None:
    with pytest.raises(UsageError, match="social"):
        FedPSO(social=5.0)
