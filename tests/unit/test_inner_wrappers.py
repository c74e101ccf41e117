"""Proximal stages and control variates: the equations in NumPy, and what they are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from runs import same_run, train
from swarmstep import Comm, DiLoCo, Every, LocalSGD, Strategy, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.objectives import ControlVariates, MeanGradient, ProximalStages, stage_of
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.local_step import learning_rate
from swarmstep.workloads import load

CURVATURES, MINIMA = np.array([1.0, 3.0, 0.5]), np.array([[2.0, -1.0], [0.0, 1.0], [-3.0, 4.0]])  # of each worker
LR, EVERY = 0.1, 4


class Point(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(2, dtype=torch.float64))


def loss_of(point: Point, rank: int) -> Tensor:
    return 0.5 * float(CURVATURES[rank]) * (point.x - torch.tensor(MINIMA[rank])).square().sum()


def test_the_stages_grow_threefold() -> None:
    assert [stage_of(step, 2) for step in range(1, 28)] == [0] * 2 + [1] * 6 + [2] * 18 + [3]


def test_proximal_stages_are_their_equation() -> None:
    gamma, first, steps = 2.0, 2, 12
    point, dual = Point(), nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = ProximalStages(torch.optim.SGD([point.x, dual], lr=LR), gamma, first, without=[dual])
    v, reference, iterates = np.zeros(2), np.zeros(2), []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (loss_of(point, 0) + 2.0 * dual.sum()).backward()
        optimizer.step()
        v = v - LR * (CURVATURES[0] * (v - MINIMA[0]) + (v - reference) / gamma)
        iterates.append(v)
        if step in (2, 8):
            reference, iterates = np.mean(iterates, axis=0), []
        np.testing.assert_allclose(point.x.detach().numpy(), v, rtol=1e-12)
        if step == 5:  # in the middle of a stage
            saved = optimizer.state_dict()
            optimizer = ProximalStages(torch.optim.SGD([point.x, dual], lr=LR), gamma, first, without=[dual])
            optimizer.load_state_dict(saved)
    assert dual.item() == pytest.approx(1 - steps * LR * 2.0)  # never pulled back


def test_the_learning_rate_of_a_run_falls_with_the_stages() -> None:
    config = Config("digits", optimizer="sgd", lr=0.9, batch=1, every=1, steps=9, eval_every=9, proximal="500,2",
                    weight_decay=0.0, schedule="constant", warmup=0, clip=0.0, sampling="natural")  # fmt: skip
    assert [learning_rate(config, step) for step in (1, 2, 3, 8, 9)] == pytest.approx([0.9, 0.9, 0.3, 0.3, 0.1])


def controlled(comm: Comm, strategy: Strategy, steps: int, control: bool) -> list[Tensor]:
    point = Point()
    mean = MeanGradient([point.x])
    sync = Synchronizer(nn.ModuleDict({"point": point, "mean": mean}), strategy, comm)
    sgd = torch.optim.SGD([point.x], lr=LR)
    optimizer = ControlVariates(sgd, mean) if control else sgd
    found: list[Tensor] = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(point, comm.rank)
        loss.backward()
        optimizer.step()
        if sync.step(loss) and isinstance(optimizer, ControlVariates):
            optimizer.landed()
        found.append(point.x.detach().clone())
    sync.finish()
    return found


def test_control_variates_are_their_equation() -> None:
    steps = 3 * EVERY
    found = simulate(lambda comm: controlled(comm, LocalSGD(when=Every(EVERY)), steps, True), 3)
    x, c_i, c = np.zeros((3, 2)), np.zeros((3, 2)), np.zeros(2)
    gradients: list[Any] = []
    for step in range(steps):
        gradient = CURVATURES[:, None] * (x - MINIMA)
        gradients.append(gradient)
        x = x - LR * (gradient - c_i + c)
        if (step + 1) % EVERY == 0:
            x[:] = x.mean(0)
            c_i = np.mean(gradients, axis=0)
            c, gradients = c_i.mean(0), []
        np.testing.assert_allclose(torch.stack([one[step] for one in found]).numpy(), x, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", [LocalSGD(when=Every(EVERY)), DiLoCo(when=Every(EVERY), momentum=0.5)])
def test_control_variates_find_the_minimum_of_all_where_local_steps_alone_do_not(strategy: Strategy) -> None:
    best = (CURVATURES[:, None] * MINIMA).sum(0) / CURVATURES.sum()
    ends = {
        control: simulate(lambda comm, control=control: controlled(comm, strategy, 160, control), 3)[0][-1].numpy()
        for control in (True, False)
    }
    np.testing.assert_allclose(ends[True], best, atol=1e-5)
    assert np.abs(ends[False] - best).max() > 1e-3


FIELDS = {"strategy": "local-sgd", "optimizer": "sgd"}


@pytest.mark.parametrize("name", ["rare", "classes"])
@pytest.mark.parametrize("given", [{"proximal": "10,2"}, {"control_variates": True}], ids=["proximal", "control"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, name: str, given: dict[str, Any]) -> None:
    fields = {**FIELDS, **given}
    train(fields, tmp_path / "whole", name)
    train(fields, tmp_path / "parts", name, stop_at=6)
    train(fields, tmp_path / "parts", name, resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"proximal": "500"}, "expected GAMMA,STEPS, both above 0, such as 500,4000, found 500"),
        ({"proximal": "0,5"}, "expected GAMMA,STEPS"),
        ({"proximal": "5,5", "schedule": "cosine"}, "lowers the learning rate itself; found --schedule cosine"),
        ({"control_variates": True, "optimizer": "adamw"}, "expected --optimizer sgd, found adamw"),
        ({"control_variates": True, "delay": 1}, "expected no --delay"),
        ({"control_variates": True, "strategy": "synchronous"}, "average the weights of all workers; synchronous"),
        ({"control_variates": True, "strategy": "pso-ps"}, "average the weights of all workers; pso-ps"),
        ({"control_variates": True, "strategy": "asgrad"}, "no --control-variates"),
        ({"proximal": "5,5", "strategy": "asgrad"}, "no --proximal"),
    ],
)
def test_what_does_not_go_together_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        train({**FIELDS, **given}, None)


def test_wrong_stages_are_named() -> None:
    with pytest.raises(UsageError, match="expected gamma above 0 and first of at least 1, found 0, 4000"):
        ProximalStages(torch.optim.SGD([Point().x]), 0)


@pytest.mark.parametrize(
    "balance", [{"balance": "steps"}, {"balance": "time", "when": "time:10"}], ids=lambda given: given["balance"]
)
def test_proximal_stages_need_workers_that_take_equally_many_steps(balance: dict[str, Any]) -> None:
    config = Config("digits", strategy="local-sgd", proximal="1,4", speeds="1,1,1,3", **balance)
    with pytest.raises(UsageError, match="--proximal: its stages are counted in steps"):
        resolve(config, load("digits", None))


def test_control_variates_ask_the_strategy_after_a_warm_up() -> None:
    workload = load("digits", None)
    resolve(Config("digits", strategy="local-sgd", control_variates=True, when="warmup:8"), workload)
    with pytest.raises(UsageError, match="--control-variates need rounds"):
        resolve(Config("digits", strategy="median", control_variates=True, when="warmup:8"), workload)
