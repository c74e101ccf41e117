"""Workers that pull to different optima, where what should happen is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from helpers import VARIANTS
from swarmstep import STRATEGIES, Comm, Every, Options, Strategy, Synchronizer, simulate
from whole_runs import fast_ones

P = 12
WORKERS = 4
# Those whose fixed point is the common optimum when all curvatures are equal, whatever the number of steps.
AVERAGING = {"bmuf", "diloco", "hierarchical", "local-sgd", "osp", "slowmo", "swarm", "synchronous"}
# Those that keep the workers apart, or look at one or the middle instead of the mean.
OTHERS = {
    *("easgd", "edit", "fedpso", "gasloc", "gossip-exponential", "gossip-ring", "independent", "median"),
    *("noloco", "papa", "pso-ps", "sparta", "sparta-diloco", "trimmed-mean"),
}


class Point(nn.Module):
    """A vector; worker i's loss is half its squared distance to optimum i."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(start.clone())


def optima() -> Tensor:
    return torch.randn(WORKERS, P, generator=torch.Generator().manual_seed(1))


def common(x: Tensor) -> float:
    """Return the mean of all workers' losses at x."""
    return (0.5 * ((x - optima()) ** 2).sum(1).mean()).item()


def descend(comm: Comm, strategy: Strategy, steps: int, lr: float) -> tuple[list[float], Tensor]:
    """Return the own loss after each step, and the model at the end."""
    model = Point(torch.full((P,), 3.0))
    probe = Options(probe=lambda module, step: common(module.x), probe_cost=0.0)
    sync = Synchronizer(model, strategy, comm, probe)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    target = optima()[comm.rank]
    losses = []
    for _ in range(steps):
        loss = 0.5 * ((model.x - target) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        sync.reduce(lr)
        optimizer.step()
        sync.step(loss, lr=lr)
        losses.append(loss.item())
    sync.finish()
    return losses, model.x.detach().clone()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_mean_loss_falls_and_stays_finite(variant: str) -> None:
    strategy = dataclasses.replace(VARIANTS[variant], when=Every(4))
    found = simulate(lambda comm: descend(comm, strategy, 40, 0.1), WORKERS)
    losses = torch.tensor([own for own, _ in found]).mean(0)
    assert losses.isfinite().all()
    assert losses[-4:].mean() < 0.5 * losses[0]
    # Every worker alone would end near its own optimum: far better than the start for all together, too.
    assert all(common(x) < 0.5 * common(torch.full((P,), 3.0)) for _, x in found)


@pytest.mark.parametrize("name", fast_ones(["bmuf", "local-sgd", "swarm"], sorted(AVERAGING)))
def test_averaging_reaches_the_common_optimum(name: str) -> None:
    strategy = STRATEGIES[name]()
    strategy = dataclasses.replace(strategy, when=Every(5 if strategy.target == "weights" else 1))
    found = simulate(lambda comm: descend(comm, strategy, 400, 0.1), WORKERS)
    for _, x in found:
        torch.testing.assert_close(x, optima().mean(0), rtol=0, atol=1e-4)


def test_every_strategy_is_one_or_the_other() -> None:
    assert not AVERAGING & OTHERS
    assert set(STRATEGIES) == AVERAGING | OTHERS
