"""Local SGD against its equation, and its limit: every step, it is gradient averaging."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from helpers import batch
from rounds import game, play, weighted
from swarmstep import Comm, Every, LocalSGD, Synchronizer, average_gradients, simulate
from swarmstep.errors import CommError


@given(st.integers(1, 5), st.integers(0, 2**16), st.dictionaries(st.integers(1, 4), st.integers(0, 5)))
def test_a_round_is_the_mean_of_those_that_take_part(workers: int, seed: int, finished: dict[int, int]) -> None:
    played = weighted(game(workers, rounds=5, seed=seed, finished=finished))
    found = play(LocalSGD(), played)
    x = np.tile(played.start, (workers, 1))
    for r in range(5):
        present = [i for i in range(workers) if not played.absent(r, i)]
        x[present] += played.drift[r, present]
        x[:] = played.mean(r, x)
        np.testing.assert_allclose(found.weights[r], x, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found.results, x, rtol=1e-12, atol=1e-13)


def test_a_round_without_any_participant_is_refused() -> None:
    with pytest.raises(CommError, match="every rank had weight 0"):
        play(LocalSGD(), game(2, rounds=1, finished={0: 0, 1: 0}))


def train(comm: Comm, how: str, steps: int) -> list[Tensor]:
    """Train plain SGD without BatchNorm; return the parameters after each step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    sync = Synchronizer(model, LocalSGD(when=Every(1)), comm) if how == "weights" else None
    found = []
    for step in range(steps):
        inputs, labels = batch(0, step, comm.rank)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        if not sync:
            average_gradients(model, comm)
        optimizer.step()
        if sync:
            sync.step(loss)
        found.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return found


def test_at_every_step_it_is_gradient_averaging() -> None:
    weights = simulate(lambda comm: train(comm, "weights", 20), 4)
    gradients = simulate(lambda comm: train(comm, "gradients", 20), 4)
    for mine, theirs in zip(weights, gradients, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert (a - b).norm() <= 1e-6 * b.norm()
    start = simulate(lambda comm: train(comm, "weights", 1), 1)[0][0]
    assert (weights[0][-1] - start).norm() > 0.1 * start.norm()  # it did train


def test_the_workers_agree_after_a_round() -> None:
    found = simulate(lambda comm: train(comm, "weights", 3)[-1], 3)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
