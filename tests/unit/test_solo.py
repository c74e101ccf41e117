"""One worker alone (SNOO): its group, the outer step against torch, and settings by the number of workers."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from helpers import VARIANTS, Momentum, Trainer, batch, network, run, same
from swarmstep import Comm, DiLoCo, Every, Independent, LocalSGD, SoloComm, Strategy, simulate
from swarmstep.errors import CommError, UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.seeding import mix
from swarmstep.strategies.parts.outer_settings import outer_settings


def verbs(comm: Comm) -> list[Any]:
    x = torch.arange(6.0).view(2, 3)
    rows = x.view(1, 2, 3)
    means = [comm.mean(x, weight) for weight in (1.0, 2.0)]
    return [
        *means,
        comm.gather(x),
        comm.broadcast(x, 0),
        comm.permute(x, [0]),
        comm.all_to_all(rows),
        comm.sent(x),
    ]


def test_its_verbs_are_those_of_a_group_of_one() -> None:
    assert same(verbs(SoloComm()), simulate(verbs, 1)[0])
    solo, x = SoloComm(), torch.ones(3)
    for result in (solo.mean(x)[0], solo.gather(x), solo.broadcast(x, 0), solo.permute(x, [0])):
        result.zero_()
    assert x.all(), "a verb returned its argument"
    with pytest.raises(CommError, match="weight 0"):
        solo.mean(x, 0.0)
    for wrong in (
        lambda: solo.mean(torch.ones(1, dtype=torch.int64)),
        lambda: solo.mean(x, -1.0),
        lambda: solo.broadcast(x, 1),
        lambda: solo.permute(x, [1]),
        lambda: solo.all_to_all(torch.ones(2)),
        lambda: solo.renew(),
    ):
        with pytest.raises(UsageError):
            wrong()


@pytest.mark.parametrize("name", ["diloco", "local-sgd", "swarm", "pso-ps", "noloco", "osp"])
def test_a_run_alone_is_bitwise_one_in_a_simulation(name: str) -> None:
    strategy = (
        VARIANTS[name]
        if VARIANTS[name].target == "gradients"
        else dataclasses.replace(VARIANTS[name], when=Every(3))
    )
    found = run(SoloComm(), strategy, 7, resume=2)
    assert same(found, simulate(lambda comm: run(comm, strategy, 7), 1)[0])
    assert found.traffic == (0, 0)


def outer(strategy: Strategy | None, steps: int, n: int) -> list[torch.Tensor]:
    """Train alone by the strategy, or by hand with torch's SGD as the outer optimizer; weights after each step."""
    if strategy:
        trainer, seen = Trainer(strategy, SoloComm()), list[torch.Tensor]()
        for _ in range(steps):
            trainer.step()
            seen.append(trainer.weights())
        return seen
    trainer, seen = Trainer(Independent(), SoloComm()), []
    parameters = Flat(trainer.model).layout.parameters
    x = torch.nn.Parameter(trainer.weights()[:parameters].clone())
    optimizer = torch.optim.SGD([x], lr=0.7, momentum=0.6, nesterov=True)
    for step in range(1, steps + 1):
        trainer.step()
        if step % n == 0:
            whole = trainer.weights()
            x.grad = x.detach() - whole[:parameters]
            optimizer.step()
            whole[:parameters] = x.detach()
            Flat(trainer.model).write(whole)
        seen.append(trainer.weights())
    return seen


def test_snoo_is_torchs_nesterov_on_what_the_steps_have_found_bitwise() -> None:
    expected = outer(None, 9, 3)
    assert same(outer(DiLoCo(None, None, when=Every(3)), 9, 3), expected)
    assert not same(expected[-1], outer(DiLoCo(0.7, 0.9, when=Every(3)), 9, 3)[-1])


def test_a_mean_of_one_changes_nothing() -> None:
    """Local SGD alone is the plain loop, bitwise."""
    model = network(0)
    optimizer = Momentum(model.parameters())
    for step in range(1, 7):
        torch.default_generator.manual_seed(mix(0, step, 0))
        inputs, labels = batch(0, step, 0)
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    assert same(run(SoloComm(), LocalSGD(when=Every(2)), 6).weights[-2], Flat(model).read())


def test_the_two_sequence_form_is_nesterovs() -> None:
    rng = np.random.default_rng(0)
    x, u, s, w = np.zeros(5), np.zeros(5), 0.7, 0.6
    z, before = x.copy(), x.copy()
    for _ in range(20):
        step = rng.normal(size=5)
        u = w * u + step
        x = x - s * (step + w * u)
        y = z - s * step
        z, before = y + w * (y - before), y
        assert np.allclose(x, z, atol=1e-14)


def test_settings_by_the_number_of_workers() -> None:
    assert [outer_settings(w)[:2] for w in (1, 2, 16, 17, 100)] == [(0.7, 0.6), (0.9, 0.8), *[(1.0, 0.9)] * 3]
    assert [outer_settings(w).published for w in (1, 2, 3, 4, 16, 17)] == [True, True, False, False, True, False]
    rates = [outer_settings(w) for w in range(1, 40)]
    assert rates == sorted(rates, key=lambda found: (found.lr, found.momentum))
    assert str(outer_settings(4)) == "lr 0.933, momentum 0.833 (ours, beside MuLoCo's for 1, 2 and 16)"
    assert "MuLoCo's, for rounds of 30 steps" in str(outer_settings(1))


@pytest.mark.parametrize("workers", [1, 2, 3, 17])
def test_a_strategy_that_is_not_told_takes_those(workers: int) -> None:
    found = outer_settings(workers)
    told, when = DiLoCo(found.lr, found.momentum, when=Every(1)), Every(1)
    asked = simulate(lambda comm: run(comm, DiLoCo(None, None, when=when), 2).weights, workers)
    assert same(asked, simulate(lambda comm: run(comm, told, 2).weights, workers))
    half = DiLoCo(None, 0.5).step_of(workers)
    assert (half.social, half.inertia) == (found.lr, 0.5)
