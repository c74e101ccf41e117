"""Pseudo-synchronization: its equation in NumPy, and what is left of it at its limits."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import Trainer, same
from swarmstep import Comm, DiLoCo, Every, simulate
from swarmstep.errors import UsageError
from swarmstep.objectives import PseudoSynchronization
from swarmstep.seeding import generator

LR = 0.1


def drawn(seed: int, step: int, rank: int) -> float:
    return float(torch.rand((), generator=generator(seed, step, rank, "palsgd")))


@pytest.mark.parametrize(("p", "a"), [(0.4, 0.3), (0.9, 1.0), (0.5, 0.0)])
def test_it_is_its_equation_also_after_a_resume(p: float, a: float) -> None:
    minimum = np.array([2.0, -1.0, 0.5])
    x = nn.Parameter(torch.ones(3, dtype=torch.float64))
    made = [PseudoSynchronization(torch.optim.SGD([x], lr=LR), p, a, seed=3, rank=2) for _ in range(2)]
    v, reference, pulls = np.ones(3), np.ones(3), 0
    for step in range(1, 41):
        optimizer = made[step > 15]
        optimizer.zero_grad()
        (0.5 * (x - torch.tensor(minimum)).square().sum()).backward()
        optimizer.step()
        if drawn(3, step, 2) < p:
            v, pulls = v - a * (v - reference), pulls + 1
        else:
            v = v - LR * (v - minimum)
        if step % 7 == 0:
            optimizer.landed()
            reference = v
        np.testing.assert_allclose(x.detach().numpy(), v, atol=1e-13)
        if step == 15:
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            made[1].load_state_dict(torch.load(file, weights_only=True))
    assert abs(pulls - 40 * p) < 4 * np.sqrt(40 * p * (1 - p))


def weights_of(comm: Comm, p: float | None) -> tuple[Tensor, float]:
    """Train without a round; return the weights at the end, and how far they are from the start."""
    trainer = Trainer(DiLoCo(1.0, 0.0, when=Every(20)), comm)
    if p is not None:
        trainer.optimizer = PseudoSynchronization(inner_of(trainer), p, 0.5, rank=comm.rank)  # type: ignore[assignment]
    start = trainer.weights()
    for _ in range(19):
        if trainer.step() and p is not None:
            trainer.optimizer.landed()  # type: ignore[attr-defined]
    return trainer.weights(), float((trainer.weights() - start).norm())


def inner_of(trainer: Trainer) -> torch.optim.Optimizer:
    optimizer: torch.optim.Optimizer = trainer.optimizer  # type: ignore[assignment]
    optimizer.param_groups = [{"params": [*trainer.model.parameters()]}]  # the helper's has none
    return optimizer


def test_without_pulls_it_is_the_optimizer_and_with_them_workers_stay_nearer() -> None:
    plain, never, often = (simulate(lambda comm, p=p: weights_of(comm, p), 2) for p in (None, 0.0, 0.5))
    assert same([weights for weights, _ in plain], [weights for weights, _ in never])
    assert all(near < 0.8 * far for (_, near), (_, far) in zip(often, plain, strict=True))


@pytest.mark.parametrize("values", [(1.0, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_ranges(values: tuple[float, float]) -> None:
    with pytest.raises(UsageError, match="probability of 0 up to below 1"):
        PseudoSynchronization(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=LR), *values)
