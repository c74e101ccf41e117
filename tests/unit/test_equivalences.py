"""Methods that are the same method at some setting, by whole runs of a small network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from swarmstep import (
    BMUF,
    EASGD,
    PAPA,
    Comm,
    DiLoCo,
    Every,
    GASLoC,
    GossipRing,
    GradientChange,
    Independent,
    InformedSwarm,
    LocalSGD,
    Never,
    SlowMo,
    Strategy,
    Synchronizer,
    When,
    average_gradients,
    simulate,
)
from swarmstep.runtime.flat import Flat
from whole_runs import fast_ones

STEPS, LR = 24, 0.1
Run = list[list[Tensor]]


def train(comm: Comm, strategy: Strategy, synchronous: bool = False) -> list[Tensor]:
    """Return the flat vector after each step, in float64, so that equal means equal to rounding."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Tanh(), torch.nn.Linear(6, 1)
    )
    model.double()
    sync = Synchronizer(model, strategy, comm)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    seen = []
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(100 * step + comm.rank)
        inputs = torch.randn(8, 4, generator=generator, dtype=torch.float64) + 0.5 * comm.rank
        loss = ((model(inputs)[:, 0] - inputs.sum(dim=1)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        if synchronous:
            average_gradients(model, comm)
        optimizer.step()
        sync.step(loss, LR)
        seen.append(Flat(model).read())
    return seen


def runs(strategy: Strategy, workers: int = 3, synchronous: bool = False) -> Run:
    return simulate(lambda comm: train(comm, strategy, synchronous), workers)


def difference(a: Run, b: Run) -> float:
    return max(
        float((x - y).abs().max())
        for left, right in zip(a, b, strict=True)
        for x, y in zip(left, right, strict=True)
    )


def parameters(run: Run) -> Run:
    return [[x[: 4 * 6 + 6 + 12 + 7] for x in seen] for seen in run]


LOCAL_SGD: dict[str, Callable[[When], Strategy]] = {
    "PAPA a=0": lambda when: PAPA(0.0, when=when),
    "BMUF z=1 w=0": lambda when: BMUF(momentum=0.0, block_lr=1.0, when=when),
    "BMUF z=1 w=0 Nesterov": lambda when: BMUF(momentum=0.0, block_lr=1.0, nesterov=True, when=when),
    "SlowMo a=1 b=0": lambda when: SlowMo(1.0, 0.0, when=when),
    "DiLoCo s=1 w=0": lambda when: DiLoCo(1.0, 0.0, when=when),
    "DiLoCo s=1 w=0 measured": lambda when: DiLoCo(1.0, 0.0, "measured", when=when),
    "informed swarm s=1 w=0": lambda when: InformedSwarm(trust="uniform", social=1.0, inertia=0.0, when=when),
    "GASLoC s=1 w=0 on the complete graph": lambda when: GASLoC(1.0, 0.0, "complete", when=when),
    "gossip on the complete graph": lambda when: GossipRing(reach=3, when=when),
}


@pytest.mark.parametrize("name", LOCAL_SGD)
@pytest.mark.parametrize("workers", fast_ones([3], [1, 3, 4]))
def test_is_local_sgd(name: str, workers: int) -> None:
    assert difference(runs(LOCAL_SGD[name](Every(4)), workers), runs(LocalSGD(when=Every(4)), workers)) < 1e-12


def test_the_informed_swarm_with_uniform_trust_is_diloco_and_bmuf() -> None:
    for reach in ("fixed", "measured"):
        swarm = InformedSwarm(trust="uniform", social=0.7, inertia=0.9, reach=reach, when=Every(4))
        assert difference(runs(swarm), runs(DiLoCo(0.7, 0.9, reach, when=Every(4)))) == 0.0
    blocks = InformedSwarm("uniform", 1.0, 0.5, "fixed", look_ahead=False, when=Every(4))
    assert difference(runs(blocks), runs(BMUF(momentum=0.5, when=Every(4)))) < 1e-12


def test_easgd_without_elasticity_is_independent_training() -> None:
    elastic, alone = runs(EASGD(0.0, when=Every(4))), runs(Independent(when=Never()))
    assert difference(parameters(elastic), parameters(alone)) == 0.0


@pytest.mark.parametrize("window", [1, 3, 25])
def test_selsync_with_threshold_0_is_averaging_at_every_step(window: int) -> None:
    selsync = LocalSGD(when=GradientChange(0.0, window))
    assert difference(runs(selsync), runs(LocalSGD(when=Every(1)))) == 0.0


def test_local_sgd_at_every_step_is_gradient_averaging() -> None:
    local, synchronous = runs(LocalSGD(when=Every(1))), runs(Independent(when=Never()), synchronous=True)
    assert difference(parameters(local), parameters(synchronous)) < 1e-12


@pytest.mark.parametrize(("lr", "momentum"), [(0.7, 0.9), (1.0, 0.5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_diloco_is_torch_nesterov_sgd_on_x_minus_m(lr: float, momentum: float, dtype: torch.dtype) -> None:
    """Bitwise, over several rounds of a model without buffers."""

    def with_diloco(comm: Comm) -> list[Tensor]:
        model, seen = linear(dtype), []
        sync = Synchronizer(model, DiLoCo(lr, momentum, when=Every(2)), comm)
        for step in range(12):
            sync.step(local_step(model, step, comm.rank))
            seen.append(Flat(model).read())
        return seen

    def by_hand(comm: Comm) -> list[Tensor]:
        model = linear(dtype)
        outer = [p.detach().clone().requires_grad_() for p in model.parameters()]
        optimizer = torch.optim.SGD(outer, lr, momentum, nesterov=True)
        seen = []
        for step in range(12):
            local_step(model, step, comm.rank)
            if step % 2:
                for p, x in zip(model.parameters(), outer, strict=True):
                    x.grad = x.detach() - comm.mean(p.detach())[0]
                optimizer.step()
                with torch.no_grad():
                    for p, x in zip(model.parameters(), outer, strict=True):
                        p.copy_(x)
            seen.append(Flat(model).read())
        return seen

    assert difference(simulate(with_diloco, 3), simulate(by_hand, 3)) == 0.0


def linear(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(4, 2).to(dtype)


def local_step(model: torch.nn.Module, step: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * step + rank)
    dtype = next(model.parameters()).dtype
    loss = (model(torch.randn(5, 4, generator=generator, dtype=dtype)) ** 2).mean()
    model.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= LR * p.grad
    return loss
