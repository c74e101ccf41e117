"""What a probe may return, autocast around a step, and the learning rates of parameter groups."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import VARIANTS, batch, network, probe, same
from swarmstep import (
    PAPA,
    PSOPS,
    Comm,
    Every,
    InformedSwarm,
    LocalSGD,
    Options,
    QuadraticRule,
    SlowMo,
    Strategy,
    Synchronizer,
    simulate,
)
from swarmstep.comm.codecs import Int8
from swarmstep.errors import NotFinite, UsageError
from whole_runs import KINDS, fast_ones

RETURNS: dict[str, Callable[[nn.Module], Any]] = {
    "int": lambda m: 3,
    "bool": lambda m: True,
    "numpy float": lambda m: np.float32(0.5),
    "numpy int": lambda m: np.int64(-2),
    "numpy bool": lambda m: np.True_,
    "numpy array of one": lambda m: np.array([0.25]),
    "tensor": lambda m: torch.tensor(0.5),
    "tensor of one": lambda m: torch.tensor([[0.5]]),
    "integer tensor": lambda m: torch.tensor(7),
    "bfloat16 tensor": lambda m: torch.tensor(0.5, dtype=torch.bfloat16),
    "own graph": lambda m: graph(m),
    "losses": lambda m: torch.arange(5.0),
    "bfloat16 losses": lambda m: torch.ones(2, dtype=torch.bfloat16),
    "losses with a graph": lambda m: torch.stack([graph(m)] * 20),
}
REFUSED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "None": (lambda m: None, "found None"),
    "text": (lambda m: "0.5", "found '0.5'"),
    "matrix": (lambda m: torch.zeros(3, 1, 2), r"found a tensor of shape \[3, 1, 2\]"),
    "no examples": (lambda m: torch.zeros(0), r"found a tensor of shape \[0\]"),
    "NumPy vector": (lambda m: np.zeros(2), r"found array"),
    "complex": (lambda m: torch.tensor(1j), "complex64"),
    "complex number": (lambda m: 1j, "found 1j"),
    "pair": (lambda m: (0.5, 0.9), r"found \(0.5, 0.9\)"),
    "class": (lambda m: float, "found <class 'float'>"),
}


@torch.enable_grad()
def graph(model: nn.Module) -> Tensor:
    return sum((p.square().sum() for p in model.parameters()), torch.tensor(0.0))


@pytest.mark.parametrize("what", RETURNS)
@pytest.mark.parametrize("kind", [InformedSwarm, PSOPS])
def test_a_probe_may_return_any_one_number_or_a_vector_of_losses(what: str, kind: type[Any]) -> None:
    def train(comm: Comm) -> Any:
        options = Options(probe=lambda m, step: RETURNS[what](m), probe_cost=0.01)
        strategy = kind(when=Every(1), **({"fitness": "probe"} if kind is PSOPS else {}))
        sync = Synchronizer(nn.Linear(2, 2), strategy, comm, options)
        return [sync.step(1.0) is not None for _ in range(4)]

    assert simulate(train, 2) == [[True] * 4] * 2


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_number_is_named(what: str) -> None:
    def train(comm: Comm) -> None:
        function, _ = REFUSED[what]
        Synchronizer(nn.Linear(2, 2), InformedSwarm(), comm, Options(probe=lambda m, step: function(m)))

    with pytest.raises(UsageError, match=f"probe: expected one real number .*{REFUSED[what][1]}"):
        simulate(train, 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_probe_that_is_not_finite_at_the_start_is_an_error(value: float) -> None:
    def train(comm: Comm) -> None:
        Synchronizer(nn.Linear(2, 2), InformedSwarm(), comm, Options(probe=lambda m, step: value))

    with pytest.raises(NotFinite, match=r"the probe's loss is (nan|inf) on rank 0 before step 1"):
        simulate(train, 2)


def autocast(on: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if on else contextlib.nullcontext()


def trained(strategy: Strategy, comm: Comm, inside: bool, **given: Any) -> list[Any]:
    """Train under autocast, with the step inside of it or after it; the probe casts in both."""

    def cast(model: nn.Module, step: int) -> Tensor:
        with autocast(True):
            return probe(model, step)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    options = Options(probe=cast, probe_cost=0.01, **given)
    sync = Synchronizer(model, dataclasses.replace(strategy, when=Every(2)), comm, options)
    seen: list[Any] = []
    for n in range(1, 9):
        optimizer.zero_grad()
        with autocast(True):
            torch.manual_seed(n)
            inputs, labels = batch(0, n, comm.rank)
            loss = nn.functional.cross_entropy(model(inputs), labels)
            loss.backward()
            with autocast(True) if inside else torch.autocast("cpu", enabled=False):
                sync.reduce(0.1)
                optimizer.step()
                landed: Any = sync.step(loss, 0.1)
        seen += [landed.losses, landed.distrusted] if landed else []
    sync.finish()
    return [*seen, [p.detach().clone() for p in model.parameters()]]


@pytest.mark.parametrize("name", fast_ones(KINDS, VARIANTS))
def test_a_step_inside_autocast_is_one_outside(name: str) -> None:
    inside, outside = (simulate(lambda comm, i=i: trained(VARIANTS[name], comm, i), 3) for i in (True, False))
    assert same(inside, outside)


@pytest.mark.parametrize("given", [{"codec": Int8()}, {"delay": 1, "fragments": 2}])
def test_so_are_coded_rounds_and_rounds_of_parts(given: dict[str, Any]) -> None:
    inside, outside = (simulate(lambda comm, i=i: trained(SlowMo(), comm, i, **given), 3) for i in (True, False))
    assert same(inside, outside)


def test_a_probe_inside_autocast_sees_the_new_weights_in_the_users_precision() -> None:
    """The probe has no autocast of its own, so that all its casts come from the one around the step."""

    def train(comm: Comm) -> tuple[list[float], set[torch.dtype]]:
        model = nn.Linear(2, 1, bias=False)
        kinds, losses = set[torch.dtype](), list[float]()

        def look(m: nn.Module, step: int) -> Tensor:
            output = m(torch.ones(1, 2))
            if step:
                kinds.add(output.dtype)
                losses.append(output.item())
            return output.sum()

        sync = Synchronizer(model, PSOPS(fitness="probe", when=Every(1)), comm, Options(probe=look))
        with autocast(True):
            for n in range(4):
                with torch.no_grad():
                    model.weight.fill_(float(n))
                sync.step(1.0)
        return losses, kinds

    for losses, kinds in simulate(train, 1):
        assert losses == [0.0, 2.0, 4.0, 6.0]
        assert kinds == {torch.bfloat16}
    assert torch.is_autocast_cache_enabled()


def grouped(comm: Comm, rates: tuple[float, float], only: int | None = None, **given: Any) -> list[Tensor]:
    """Train two layers side by side, each with a rate of its own; or one of them, with its rate as a number."""
    torch.manual_seed(0)
    both = [nn.Linear(3, 2), nn.Linear(3, 1)]
    layers = both if only is None else [both[only]]
    inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(comm.rank))
    groups = [
        {"params": layer.parameters(), "lr": rate}
        for layer, rate in zip(both, rates, strict=True)
        if layer in layers
    ]
    optimizer = torch.optim.SGD(groups, 1.0)
    sync = Synchronizer(nn.ModuleList(layers), SlowMo(0.7, 0.6, when=Every(3)), comm, Options(**given))
    for _ in range(8 if comm.rank == 1 and not given else 12):  # rank 1 learns the rates of its last round
        optimizer.zero_grad()
        torch.stack([layer(inputs).square().mean() for layer in layers]).sum().backward()
        optimizer.step()
        sync.step(1.0, optimizer if only is None else rates[only])
    sync.finish()
    return [p.detach().clone() for layer in layers for p in layer.parameters()]


@pytest.mark.parametrize("rates", [(0.1, 0.4), (0.3, 0.0), (0.0, 0.1), (0.0, 0.0), (0.2, 0.2)])
def test_slowmo_uses_each_groups_rate(rates: tuple[float, float]) -> None:
    found, first, second = (simulate(lambda comm, k=k: grouped(comm, rates, k), 3) for k in (None, 0, 1))
    for one, two, three in zip(found, first, second, strict=True):
        torch.testing.assert_close(one, [*two, *three], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("given", [{"views": False}, {"fragments": 2}, {"fragments": 2, "delay": 2}])
def test_so_it_does_in_parts_and_in_the_background(given: dict[str, Any]) -> None:
    alone = given | {"fragments": 1}
    found = simulate(lambda comm: grouped(comm, (0.1, 0.4), **given), 2)
    first = simulate(lambda comm: grouped(comm, (0.1, 0.4), 0, **alone), 2)
    for one, two in zip(found, first, strict=True):
        torch.testing.assert_close(one[:2], two, rtol=1e-5, atol=1e-7)


def test_a_trigger_takes_the_highest_rate_of_an_optimizer() -> None:
    def rounds(comm: Comm, groups: bool) -> list[int]:
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 1e-3}])
        sync = Synchronizer(model, LocalSGD(when=QuadraticRule(2, 0.2)), comm)
        return [n for n in range(20) if sync.step(1.0, optimizer if groups else 0.1)]

    assert simulate(lambda comm: rounds(comm, True), 2) == simulate(lambda comm: rounds(comm, False), 2)


def test_a_parameter_without_a_group_is_named() -> None:
    def train(comm: Comm) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
        groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.2}]
        sync = Synchronizer(model, SlowMo(when=Every(1)), comm)
        sync.step(1.0, torch.optim.SGD(groups, 0.1))

    with pytest.raises(UsageError, match=r"'1.weight' is in none of the optimizer's groups"):
        simulate(train, 2)


@pytest.mark.parametrize("lr", ["0.1", [0.1], -0.1, float("nan"), float("inf"), torch.zeros(2), SlowMo])
def test_what_is_no_rate_is_named(lr: Any) -> None:
    def train(comm: Comm) -> None:
        Synchronizer(nn.Linear(2, 2), SlowMo(), comm).step(1.0, lr)

    with pytest.raises(UsageError, match=r"Synchronizer.step: expected lr, .* or the optimizer itself, found"):
        simulate(train, 1)


@pytest.mark.parametrize("lr", [1, 0, np.float32(0.5), torch.tensor(0.5), torch.tensor([0.5])])
def test_a_rate_may_be_any_one_number(lr: Any) -> None:
    def train(comm: Comm) -> bool:
        return Synchronizer(nn.Linear(2, 2), SlowMo(when=Every(1)), comm).step(1.0, lr) is not None

    assert simulate(train, 2) == [True, True]


RATES = {
    "slowmo": SlowMo(when=Every(3)),
    "papa": PAPA(when=Every(3)),
    "qsr": LocalSGD(when=QuadraticRule(3, 0.01)),
}


@pytest.mark.parametrize("name", RATES)
@pytest.mark.parametrize(
    "schedule", [lambda n: 0.0, lambda n: 0.01 * n, lambda n: 0.1 * (11 - n) / 11, lambda n: 0.1 * (n % 3 > 0)]
)
def test_a_rate_of_zero_at_any_step(name: str, schedule: Callable[[int], float]) -> None:
    def train(comm: Comm) -> tuple[int, list[Tensor]]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        sync, optimizer = Synchronizer(model, RATES[name], comm), torch.optim.SGD(model.parameters(), 0.1)
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(comm.rank))
        for n in range(12):
            optimizer.param_groups[0]["lr"] = schedule(n)
            optimizer.zero_grad()
            model(inputs).square().mean().backward()
            optimizer.step()
            sync.step(1.0, optimizer)
        sync.finish()
        return sync.rounds, [p.detach().clone() for p in model.parameters()]

    found = simulate(train, 2)
    assert same(found[0], found[1])
    assert found[0][0] == 4
    assert all(p.isfinite().all() for p in found[0][1])


@pytest.mark.parametrize("name", ["slowmo", "qsr"])
def test_a_missing_rate_is_asked_for_by_name(name: str) -> None:
    def train(comm: Comm) -> None:
        sync = Synchronizer(nn.Linear(2, 2), RATES[name], comm)
        for _ in range(3):
            sync.step(1.0)

    with pytest.raises(UsageError, match=r"(SlowMo|QuadraticRule) needs the inner optimizer's learning rate"):
        simulate(train, 2)
