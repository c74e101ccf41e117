"""Rounds that average what optimizers remember: against NumPy, limit cases, resume, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from helpers import same
from inner import AdamTrainer, trained
from swarmstep import (
    PAPA,
    Comm,
    CoordinateMedian,
    DiLoCo,
    Every,
    GossipRing,
    InformedSwarm,
    LocalSGD,
    NoLoCo,
    Options,
    Strategy,
    Synchronizer,
    Synchronous,
    Warmup,
    simulate,
)
from swarmstep.cli.app import main
from swarmstep.comm.codecs import Int8
from swarmstep.errors import Disagreement, UsageError

WORKERS = 3
Array = NDArray[np.float64]
DES_LOC = {"exp_avg": 3, "exp_avg_sq": 6}


class Point(nn.Module):
    """Two tensors of float64, with the loss (x - c)' A (x - c) / 2 of each worker."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.ones(2).double())


def problem(rank: int) -> tuple[Array, Array]:
    rng = np.random.default_rng([7, rank])
    return rng.uniform(0.5, 2.0, 5), rng.normal(size=5)


def adam(comm: Comm, n: int, rule: Any, weights: list[float], steps: int) -> list[Array]:
    """Train with torch's Adam; return weights, first and second moments after each step."""
    model, (curvature, centre) = Point(), problem(comm.rank)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, betas=(0.9, 0.99))
    given = Options(optimizer_state=rule, optimizers=[optimizer])
    sync, seen = Synchronizer(model, LocalSGD(when=Every(n)), comm, given), []
    for _ in range(steps):
        x = torch.cat([model.a, model.b])
        loss = (torch.tensor(curvature) * (x - torch.tensor(centre)) ** 2).sum() / 2
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sync.step(loss, 0.05, weights[comm.rank])
        moments = [
            np.concatenate([optimizer.state[p][name].numpy() for p in (model.a, model.b)])
            for name in ("exp_avg", "exp_avg_sq")
        ]
        seen.append(np.stack([torch.cat([model.a, model.b]).detach().numpy(), *moments]))
    return seen


def equations(n: int, periods: tuple[int, int], weights: list[float], steps: int) -> list[Array]:
    """DES-LOC in NumPy: x every n steps, m every n k_m and v every n k_v; [W, 3, P] after each step; 0: never."""
    x, m, v = (np.tile(start, (WORKERS, 5)) for start in (1.0, 0.0, 0.0))
    share = np.array(weights) / sum(weights)
    curvature, centre = (np.stack(part) for part in zip(*map(problem, range(WORKERS)), strict=True))
    seen = []
    for t in range(1, steps + 1):
        g = curvature * (x - centre)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
        x = x - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
        x, m, v = (
            np.tile(share @ part, (WORKERS, 1)) if k and t % (n * k) == 0 else part
            for part, k in zip((x, m, v), (1, *periods), strict=True)
        )
        seen.append(np.stack([x, m, v], 1))
    return seen


@pytest.mark.parametrize(
    ("rule", "periods"),
    [("local", (0, 0)), ("mean", (1, 1)), (DES_LOC, (3, 6)), ({"exp_avg_sq": 2}, (0, 2))],
    ids=str,
)
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [1.0, 2.0, 5.0]])
def test_each_state_is_averaged_in_its_rounds(rule: Any, periods: tuple[int, int], weights: list[float]) -> None:
    found = simulate(lambda comm: adam(comm, 2, rule, weights, 14), WORKERS)
    for t, expected in enumerate(equations(2, periods, weights, 14)):
        # Averaged states travel in float32, whatever the model's dtype.
        assert np.allclose(np.stack([mine[t] for mine in found]), expected, rtol=1e-10, atol=1e-12)


def test_the_mean_of_squares_is_not_the_square_of_the_mean() -> None:
    """With a round in each step, all that is apart from Adam on the mean gradient is the spread within v."""
    x, m, v, v_mean = np.ones(5), np.zeros(5), np.zeros(5), np.zeros(5)
    curvature, centre = (np.stack(part) for part in zip(*map(problem, range(WORKERS)), strict=True))
    found = simulate(lambda comm: adam(comm, 1, "mean", [1.0] * 3, 1), WORKERS)
    g = curvature * (x - centre)
    m = 0.9 * m + 0.1 * g.mean(0)
    v, v_mean = 0.99 * v + 0.01 * g.mean(0) ** 2, 0.99 * v_mean + 0.01 * (g**2).mean(0)
    for (seen,) in found:
        assert np.allclose(seen[1:], [m, v_mean], atol=1e-8)
        assert np.allclose(seen[2] - v, 0.01 * g.var(0), atol=1e-8)
        assert (seen[2] - v).max() > 1e-3


def test_local_is_what_nobody_asked_for() -> None:
    plain = simulate(lambda comm: trained(comm, LocalSGD(when=Every(2)), 6), WORKERS)
    assert same(
        simulate(lambda comm: trained(comm, LocalSGD(when=Every(2)), 6, optimizer_state="local"), 3), plain
    )


def test_one_worker_keeps_its_states() -> None:
    for rule in ("mean", DES_LOC):
        found = simulate(lambda comm, r=rule: trained(comm, LocalSGD(when=Every(1)), 6, optimizer_state=r), 1)
        assert same(found, simulate(lambda comm: trained(comm, LocalSGD(when=Every(1)), 6), 1))


CASES: list[tuple[Strategy, Any, dict[str, Any]]] = [
    (LocalSGD(when=Every(2)), "mean", {}),
    (DiLoCo(when=Every(1)), DES_LOC, {"codec": Int8(8)}),
    (InformedSwarm(when=Every(2)), "mean", {"views": True}),
    (PAPA(when=Every(2)), {"exp_avg": 2}, {"fragments": 2}),
    (Warmup(DiLoCo(when=Every(2)), 2), "mean", {"mix": 0.5}),
]


@pytest.mark.parametrize(("strategy", "rule", "given"), CASES, ids=str)
def test_resumed_equals_uninterrupted_bitwise(strategy: Strategy, rule: Any, given: dict[str, Any]) -> None:
    if given.get("fragments"):
        given = {**given, "probe": None, "probe_cost": None}
    whole = simulate(lambda comm: trained(comm, strategy, 8, optimizer_state=rule, **given), WORKERS)
    again = simulate(lambda comm: trained(comm, strategy, 8, 5, optimizer_state=rule, **given), WORKERS)
    assert same(again, whole)
    local = simulate(lambda comm: trained(comm, strategy, 8, **given), WORKERS)
    assert not same(local, whole)


def test_after_a_round_all_have_the_same_moments_and_their_own_in_between() -> None:
    found = simulate(lambda comm: trained(comm, LocalSGD(when=Every(3)), 6, optimizer_state="mean"), WORKERS)
    for step in range(1, 7):
        moments = [mine[2 * step - 1] for mine in found]
        assert same(moments[0], moments[1]) == (step % 3 == 0)


def refusals(comm: Comm) -> None:
    for given, words in (
        ({"optimizer_state": "none"}, "expected 'local', 'mean' or a mapping"),
        ({"optimizer_state": {}}, "expected names with a number of rounds"),
        ({"optimizer_state": {"exp_avg": 0}}, "expected names with a number of rounds"),
        ({"optimizer_state": "mean", "delay": 1}, "does not go with delay"),
    ):
        with pytest.raises(UsageError, match=words):
            AdamTrainer(LocalSGD(), comm, **given)
    with pytest.raises(UsageError, match="give the optimizers"):
        Options(optimizer_state="mean")
    strategies = (Synchronous(), CoordinateMedian(), NoLoCo(), GossipRing(), Warmup(NoLoCo(), 1))
    for strategy in strategies:
        with pytest.raises(UsageError, match="does not take the plain mean of the workers' weights"):
            AdamTrainer(strategy, comm, optimizer_state="mean")


def test_what_cannot_be_right_is_refused_by_name() -> None:
    simulate(refusals, 2)


def unknown(comm: Comm) -> None:
    trainer = AdamTrainer(LocalSGD(when=Every(1)), comm, optimizer_state={"exp_avg": 1, "momentum": 2})
    trainer.step()


def stateless(comm: Comm) -> None:
    trainer = AdamTrainer(LocalSGD(when=Every(1)), comm, optimizer_state="mean")
    trainer.optimizer.step = lambda: None  # type: ignore[method-assign]
    trainer.step()


@pytest.mark.parametrize(
    ("job", "words"),
    [(unknown, "no optimizer has a state 'momentum'.*expected exp_avg, exp_avg_sq"), (stateless, "take 'local'")],
)
def test_states_that_nobody_has_are_named(job: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        simulate(job, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--optimizer-state exp_avg=2", "--optimizer momentum remembers momentum_buffer"),
        ("--optimizer-state mean --optimizer sgd", "--optimizer sgd remembers nothing; expected local"),
        ("--optimizer-state some", "expected 'local', 'mean' or a mapping"),
        ("--optimizer-state momentum_buffer=x", "expected local, each worker"),
        ("--optimizer-state momentum_buffer=0", "expected names with a number of rounds"),
        ("--optimizer-state mean --delay 2", "does not go with --delay"),
        ("--optimizer-state mean --strategy noloco", "NoLoCo does not take the plain mean"),
        ("--optimizer-state mean --strategy synchronous", "Synchronous does not take the plain mean"),
        ("--optimizer-state mean --strategy independent", "Independent does not take the plain mean"),
        ("--optimizer-state mean --strategy quorum", "expected no --optimizer-state"),
    ],
)
def test_the_command_refuses_before_the_first_step(
    options: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", "--no-files", "--steps", "2", *options.split()]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


def test_ranks_that_differ_are_told() -> None:
    with pytest.raises(Disagreement, match="optimizer state"):
        simulate(lambda comm: AdamTrainer(LocalSGD(), comm, optimizer_state="mean" if comm.rank else DES_LOC), 2)


class Odd(nn.Module):
    """Tied weights, a frozen parameter, one in bfloat16, and one that only some workers train."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.seldom = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(3))
        self.tied, self.frozen = self.a, nn.Parameter(torch.ones(2), requires_grad=False)
        self.short = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))


def odd(comm: Comm) -> tuple[list[Tensor], list[int]]:
    model = Odd()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.1)
    given = Options(optimizer_state="mean", optimizers=[optimizer])
    sync = Synchronizer(model, LocalSGD(when=Every(1)), comm, given)
    loss = (comm.rank + 1.0) * (model.a.sum() + model.short.float().sum())
    loss = loss + (model.seldom.sum() if comm.rank else 0.0)
    loss.backward()
    optimizer.step()
    sync.step(loss)
    states = [optimizer.state[p] for p in (model.a, model.short, model.seldom) if p in optimizer.state]
    return [own["exp_avg"].clone() for own in states], [int(own["step"]) for own in states]


def test_odd_parameters() -> None:
    (first, _), (second, steps) = simulate(odd, 2)
    for mine in (first, second):
        assert torch.allclose(mine[0], torch.full((2, 2), 0.15))  # of gradients 1 and 2
        assert mine[1].dtype == torch.bfloat16
        assert torch.allclose(mine[1].float(), torch.full((2,), 0.15), atol=1e-3)
    assert len(first) == 2, "a state that a worker does not have is not made"
    assert torch.allclose(second[2], torch.full((3,), 0.05))  # 0 counts for the worker that has none
    assert steps == [1, 1, 1]


class Parts(nn.Module):
    """Two modules, each with an optimizer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)


def parts(comm: Comm) -> list[Tensor]:
    model = Parts()
    adam = torch.optim.Adam(model.first.parameters(), lr=0.1)
    sgd = torch.optim.SGD(model.second.parameters(), lr=0.1, momentum=0.9)
    given = Options(optimizer_state={"exp_avg": 1}, optimizers=[adam, sgd], fragments=2)
    sync = Synchronizer(model, LocalSGD(when=Every(2)), comm, given)
    for _ in range(2):
        loss = (comm.rank + 1.0) * sum(p.sum() for p in model.parameters())
        loss.backward()
        adam.step()
        sgd.step()
        sync.step(loss)
    return [adam.state[model.first.bias]["exp_avg"], sgd.state[model.second.bias]["momentum_buffer"]]


def test_a_part_of_the_model_without_such_a_state_has_nothing_to_average() -> None:
    (adam, sgd), (other, apart) = simulate(parts, 2)
    assert same(adam, other)
    assert not same(sgd, apart)
