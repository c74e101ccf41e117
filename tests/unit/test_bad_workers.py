"""A worker that is off: contained where the method can, else an error that names it, on all ranks."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Trainer, before_rounds
from swarmstep import (
    PSOPS,
    Comm,
    DiLoCo,
    Every,
    GossipRing,
    InformedSwarm,
    LocalSGD,
    Strategy,
    Synchronizer,
    simulate,
)
from swarmstep.errors import NotFinite
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.roll_call import GROWTH, LEAST, reported_loss

BAD = 2  # the rank that is off


def spoil(how: str, x: Tensor) -> None:
    """Make a worker's parameters what a broken machine might."""
    if how == "nan":
        x[3] = math.nan
    elif how == "inf":
        x[0] = -math.inf
    elif how == "orders":
        x *= 1e6
    elif how == "overflow":
        x.fill_(1e30)  # finite, and its length is not


def train(strategy: Strategy, how: str, comm: Comm, steps: int = 4) -> Any:
    """Train with a rank that is off at step 2; return the weights and reports, or first what was raised."""

    def strike(x: Tensor, step: int) -> None:
        if comm.rank == BAD and step == 2:
            spoil(how, x)

    trainer = Trainer(strategy, comm)
    reports: list[Any] = []
    before = trainer.weights()
    try:
        with before_rounds(strike):
            for _ in range(steps):
                before = trainer.weights()
                reports.append(trainer.step())
    except NotFinite as error:
        return str(error), before, trainer.weights()
    return trainer.weights(), reports


@pytest.mark.parametrize("how", ["nan", "inf", "orders", "overflow"])
@pytest.mark.parametrize("kind", [LocalSGD, DiLoCo, GossipRing, PSOPS])
def test_methods_that_cannot_contain_it_say_who_it_is(kind: type[Strategy], how: str) -> None:
    for said, *_ in simulate(lambda comm: train(kind(when=Every(2)), how, comm), 4):
        assert isinstance(said, str)
        assert "step 2: the weights of rank 2 are not finite, or 1000 times as large as after the last" in said
        assert f"{kind.__name__} cannot contain that; lower the learning rate" in said


@pytest.mark.parametrize("how", ["nan", "inf", "orders", "overflow"])
def test_the_swarm_goes_on_without_it_and_takes_it_back(how: str) -> None:
    swarm = InformedSwarm(when=Every(2), trust="uniform")
    for weights, reports in simulate(lambda comm: train(swarm, how, comm), 4):
        assert weights.isfinite().all()
        assert [report.participants for report in reports if report] == [3, 4]
        first = next(report for report in reports if report)
        assert [worker.rank for worker in first.distrusted] in ([], [BAD])  # absent, or present and left out


def test_the_swarm_is_what_it_would_be_without_the_worker_that_is_off() -> None:
    """Where one of four is NaN at the round, the consensus is the mean of the three others."""

    def consensus(comm: Comm) -> tuple[Tensor, Tensor]:
        swarm = InformedSwarm(when=Every(2), trust="uniform", social=1.0, inertia=0.0)
        trainer = Trainer(swarm, comm, buffers="local")
        trainer.step()
        loss = trainer.local_step()
        n = Flat(trainer.model).layout.parameters
        own = trainer.weights()[:n]
        with before_rounds(lambda x, step: x.mul_(1e9)) if comm.rank == BAD else contextlib.nullcontext():
            trainer.sync.step(loss)
        return own, trainer.weights()[:n]

    found = simulate(consensus, 4)
    mean = torch.stack([own for rank, (own, _) in enumerate(found) if rank != BAD]).double().mean(0)
    for _, after in found:
        torch.testing.assert_close(after.double(), mean, rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_not_finite_does_no_harm_to_weights_that_are() -> None:
    def lossless(comm: Comm) -> Tensor:
        trainer = Trainer(LocalSGD(when=Every(1)), comm)
        trainer.local_step()
        trainer.sync.step(torch.tensor(math.nan if comm.rank == BAD else 1.0))
        return trainer.weights()

    results = simulate(lossless, 4)
    assert all(result.equal(results[0]) and result.isfinite().all() for result in results)


def test_where_the_limit_is() -> None:
    x = torch.full((100,), 3.0)
    before = float(x.norm())
    assert reported_loss(1.0, x * (GROWTH * 0.99), 100, before) == (1.0, False)
    assert reported_loss(1.0, x * (GROWTH * 1.01), 100, before) == (1.0, True)
    for start in (0.0, LEAST * 0.99):  # a root mean square; what is so small may grow to any size
        assert reported_loss(1.0, x * 1e6, 100, start * 10) == (1.0, False)
    assert reported_loss(1.0, x * 1e6, 100, LEAST * 10.01) == (1.0, True)


def test_buffers_may_be_large_but_must_be_finite() -> None:
    x = torch.cat([torch.ones(10), torch.full((5,), 1e30)])
    assert reported_loss(1.0, x, 10, 3.0) == (1.0, False)
    x[12] = math.nan
    assert math.isnan(reported_loss(1.0, x, 10, 3.0)[0])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_none_is_said_to_be_infinite(loss: float) -> None:
    assert reported_loss(loss, torch.ones(3), 3, 1.0) == (math.inf, False)


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("start", [0.0, 0.5])
@pytest.mark.parametrize("steps", [1, 8])
def test_a_model_may_grow_to_large_targets_in_one_round(workers: int, start: float, steps: int) -> None:
    """Prices in the hundred thousands, say: all workers grow, by far more than a wrong one could."""

    def learn(comm: Comm) -> float:
        model = torch.nn.Linear(4, 1)
        torch.nn.init.constant_(model.weight, start)
        torch.nn.init.zeros_(model.bias)
        sync = Synchronizer(model, LocalSGD(when=Every(steps)), comm)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        inputs = torch.randn(64, 4, generator=torch.Generator().manual_seed(comm.rank))
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(inputs) - 3e5).square().mean()
            loss.backward()
            optimizer.step()
            sync.step(loss)
        sync.finish()
        return model.bias.item()

    for bias in simulate(learn, workers):
        assert bias == pytest.approx(3e5, rel=0.01)


@pytest.mark.parametrize("odd", [[2], [1, 2]])
def test_one_that_grows_alone_is_off_and_half_of_them_too(odd: list[int]) -> None:
    def grow(comm: Comm) -> None:
        model = torch.nn.Linear(4, 1)
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        if comm.rank in odd:
            with torch.no_grad():
                model.weight.mul_(1e5)
        sync.step(1.0)

    with pytest.raises(NotFinite, match=f"the weights of rank {', '.join(map(str, odd))} are not finite, or 1000"):
        simulate(grow, 4)


def test_what_all_have_is_still_no_number() -> None:
    def diverge(comm: Comm) -> None:
        model = torch.nn.Linear(4, 1)
        sync = Synchronizer(model, LocalSGD(when=Every(1)), comm)
        for _ in range(20):
            with torch.no_grad():
                model.weight.mul_(1e5)
            sync.step(1.0)

    with pytest.raises(NotFinite, match="the weights of rank 0, 1, 2"):
        simulate(diverge, 3)
