"""`Synchronizer.reduce`: gradients synchronized before the optimizer's step, against NumPy and plain PyTorch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import Trainer, network, run, same
from swarmstep import (
    Comm,
    Every,
    GradientChange,
    LocalSGD,
    Options,
    Synchronizer,
    Synchronous,
    average_gradients,
    simulate,
)
from swarmstep.comm.codecs import Bfloat16, Int8
from swarmstep.errors import NotFinite, UsageError

WORKERS, STEPS = 3, 7


def plain(comm: Comm) -> Tensor:
    """Train without a Synchronizer."""
    trainer = Trainer(LocalSGD(when=Every(100)), comm)
    for _ in range(STEPS):
        trainer.backward()
        average_gradients(trainer.model, comm)
        trainer.optimizer.step()
    return trainer.weights()


def synchronous(comm: Comm) -> tuple[Tensor, list[int], list[float]]:
    trainer = Trainer(Synchronous(), comm)
    rounds = [trainer.step() for _ in range(STEPS)]
    weights = trainer.weights()
    assert trainer.sync.finish() == []
    return weights, [r.step for r in rounds], [r.losses[comm.rank] for r in rounds]


def test_it_equals_averaging_by_hand_bitwise() -> None:
    found = simulate(synchronous, WORKERS)
    for (weights, steps, losses), expected in zip(found, simulate(plain, WORKERS), strict=True):
        assert same(weights, expected)
        assert steps == [*range(1, STEPS + 1)]
        assert losses[0] == np.inf  # what is known when a round starts: the losses before its step
        assert np.isfinite(losses[1:]).all()


@pytest.mark.parametrize("n", [1, 3])
def test_gradients_count_by_the_weight_of_their_own_step(n: int) -> None:
    """The weighted mean by NumPy, with 0 to 8 examples a step; other steps keep their own gradient."""
    rng = np.random.default_rng(0)
    drawn, sizes = rng.normal(size=(STEPS, WORKERS, 5)), rng.integers(0, 9, (STEPS, WORKERS))
    sizes[:, 0] += 1

    def train(comm: Comm) -> list[np.ndarray[Any, Any]]:
        model = nn.Linear(5, 1, bias=False).double()
        sync = Synchronizer(model, Synchronous(when=Every(n)), comm)
        seen = []
        for step in range(STEPS):
            model.weight.grad = torch.tensor(drawn[step, comm.rank])[None]
            weight = float(sizes[step, comm.rank])
            sync.reduce(weight=weight)
            seen.append(model.weight.grad[0].numpy().copy())
            landed = sync.step(1.0, weight=weight)
            assert (landed is not None) == ((step + 1) % n == 0)
            assert landed is None or landed.weights == tuple(sizes[step])
        return seen

    for rank, found in enumerate(simulate(train, WORKERS)):
        for step in range(STEPS):
            due = (step + 1) % n == 0
            expected = np.average(drawn[step], axis=0, weights=sizes[step]) if due else drawn[step, rank]
            np.testing.assert_allclose(found[step], expected, rtol=1e-12, atol=1e-12)


def test_parameters_without_a_gradient_count_as_zero() -> None:
    def train(comm: Comm) -> list[Tensor]:
        model = network()
        sync = Synchronizer(model, Synchronous(), comm)
        first, *others = model.parameters()
        first.grad = torch.ones_like(first) if comm.rank else None
        sync.reduce()
        return [first.grad.clone(), *(p.grad.abs().max() for p in others)]

    for first, *others in simulate(train, 4):
        assert (first == 0.75).all()
        assert not any(others)


@pytest.mark.parametrize("codec", [None, Bfloat16(), Int8(16)])
def test_resumed_at_every_step_equals_uninterrupted_bitwise(codec: Any) -> None:
    def train(comm: Comm, resume: bool) -> Any:
        return run(comm, Synchronous(), STEPS, resume, codec=codec)[:4]

    whole, resumed = (simulate(lambda comm, r=r: train(comm, r), WORKERS) for r in (False, True))
    assert same(whole, resumed)


def test_coded_gradients_are_equal_on_all_ranks_and_near_the_mean() -> None:
    found = {
        c: simulate(lambda comm, c=c: run(comm, Synchronous(), STEPS, codec=c), WORKERS) for c in (None, Int8(16))
    }
    coded, exact = (found[c][0].weights[STEPS] for c in (Int8(16), None))
    assert all(same(other.weights[STEPS][:-17], coded[:-17]) for other in found[Int8(16)])  # all but the buffers
    assert 0 < (coded - exact).norm() < 0.05 * (exact - found[None][0].weights[0]).norm()


def test_a_trigger_by_the_gradient_votes_before_the_step() -> None:
    def train(comm: Comm) -> list[int]:
        trainer = Trainer(Synchronous(when=GradientChange(0.2, window=2)), comm)
        return [round_.step for _ in range(20) if (round_ := trainer.step())]

    rounds = simulate(train, WORKERS)
    assert rounds[0] == rounds[1] == rounds[2]
    assert 4 < len(rounds[0]) < 20


def test_workers_that_finish_early_bring_no_gradient() -> None:
    def train(comm: Comm) -> list[float]:
        model = nn.Linear(1, 1, bias=False)
        sync = Synchronizer(model, Synchronous(), comm)
        seen = []
        for step in range(4 if comm.rank else 2):
            model.weight.grad = torch.full((1, 1), float(10**comm.rank * (step + 1)))
            sync.reduce()
            seen.append(model.weight.grad.item())
            sync.step(1.0)
        sync.finish()
        return seen

    assert simulate(train, 2) == [[5.5, 11.0], [5.5, 11.0, 30.0, 40.0]]


def misused(step: Callable[[Synchronizer], object]) -> str:
    def train(comm: Comm) -> str:
        sync = Synchronizer(nn.Linear(2, 2), Synchronous(), comm)
        with pytest.raises(UsageError) as caught:
            step(sync)
        return str(caught.value)

    return simulate(train, 1)[0]


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (
            lambda sync: sync.step(1.0),
            r"Synchronizer.step: Synchronous synchronizes gradients; call reduce(lr, weight)",
        ),
        (lambda sync: (sync.reduce(weight=2.0), sync.step(1.0)), "with the same weight as step"),
        (lambda sync: (sync.reduce(), sync.reduce()), "Synchronizer.reduce: called twice in one step"),
        (lambda sync: (sync.finish(), sync.reduce()), "Synchronizer.reduce called after finish"),
        (lambda sync: sync.reduce(weight=-1.0), "Synchronizer.reduce: expected a finite weight of at least 0"),
        (
            lambda sync: (sync.reduce(), sync.state_dict()),
            "Synchronizer.state_dict: called between reduce() and step()",
        ),
    ],
)
def test_wrong_use_is_named(use: Callable[[Synchronizer], object], said: str) -> None:
    assert said in misused(use)


@pytest.mark.parametrize("given", [{"delay": 2}, {"mix": 0.5}, {"fragments": 2}])
def test_what_does_not_go_with_gradients_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(given))}: Synchronous synchronizes gradients"):
        simulate(lambda comm: Synchronizer(network(), Synchronous(), comm, Options(**given)), 1)


def test_with_weights_it_does_nothing() -> None:
    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(when=Every(1)), comm)
        trainer.backward()
        before, sent = copy.deepcopy(trainer.gradient()), trainer.sync.bytes_sent
        trainer.sync.reduce()
        trainer.sync.reduce()
        assert same(trainer.gradient(), before)
        assert trainer.sync.bytes_sent == sent
        assert trainer.sync.rounds == trainer.sync.steps == 0

    simulate(train, 2)


def test_weights_that_are_not_finite_at_the_end_are_named() -> None:
    """No gradient tells of the last step."""

    def train(comm: Comm) -> str:
        trainer = Trainer(Synchronous(), comm)
        trainer.step()
        if comm.rank == 1:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(torch.nan)
        with pytest.raises(NotFinite) as caught:
            trainer.sync.finish()
        return str(caught.value)

    assert all(
        "the weights of rank 1 are not finite, and Synchronous cannot" in said for said in simulate(train, 2)
    )


def test_sparse_gradients_are_averaged_and_become_dense() -> None:
    """Each worker has a gradient for one row of an embedding."""

    def train(comm: Comm) -> Tensor:
        model = nn.Embedding(4, 2, sparse=True)
        sync = Synchronizer(model, Synchronous(), comm)
        model(torch.tensor([comm.rank])).sum().backward()
        sync.reduce()
        assert model.weight.grad is not None
        return model.weight.grad

    for found in simulate(train, 2):
        assert torch.equal(found, torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [0.0, 0.0]]))
