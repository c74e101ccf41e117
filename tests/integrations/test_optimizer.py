"""An optimizer whose steps are local steps: equal to the plain loop, alone and in a checkpoint."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch

from plain_loop import LR, RULE, examples, numbers, plain, regression, squared
from swarmstep import PSOPS, Every, InformedSwarm, LocalSGD, Synchronizer, Synchronous, Warmup, simulate
from swarmstep.comm.group import Group
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.integrations.optimizer import OptimizerHook

STEPS = 10


class Twice(torch.optim.Adam):
    """A subclass whose step calls that of its base, around which torch puts the hooks once more."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


def hooked(comm: Group, kind: str = "told", steps: int = STEPS, strategy: Any = RULE) -> list[float]:
    """Train with code that knows nothing but its optimizer."""
    model = regression()
    optimizer: torch.optim.Optimizer = (Twice if kind == "subclass" else torch.optim.Adam)(model.parameters(), LR)
    sync = Synchronizer(model, strategy, comm)
    hook = OptimizerHook(sync, optimizer)
    for batch in examples(comm, steps):

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss = squared(model, batch)
            loss.backward()
            return loss

        if kind == "closure":
            optimizer.step(closure)
        else:
            loss = closure()
            if kind == "told":
                hook.add_loss(loss)
            optimizer.step()
    assert sync.steps == steps
    sync.finish()
    return numbers(model)


def by_hand(comm: Group, strategy: Any = RULE) -> list[float]:
    model = regression()
    adam = torch.optim.Adam(model.parameters(), LR)
    return plain(comm, model, adam, examples(comm, STEPS), strategy=strategy, accumulate=1)


@pytest.mark.parametrize("kind", ["told", "closure", "silent", "subclass"])
def test_each_step_of_the_optimizer_is_a_local_step(kind: str) -> None:
    assert simulate(lambda comm: hooked(comm, kind), 2) == simulate(by_hand, 2)


@pytest.mark.parametrize("kind", ["told", "closure"])
def test_losses_reach_strategies_that_compare_them(kind: str) -> None:
    rule = PSOPS(when=Every(2))
    assert simulate(lambda comm: hooked(comm, kind, strategy=rule), 3) == simulate(lambda c: by_hand(c, rule), 3)


def test_a_strategy_that_compares_losses_needs_them() -> None:
    with pytest.raises(UsageError, match="step 1: PSOPS compares the workers' losses, and none was told"):
        simulate(lambda comm: hooked(comm, "silent", strategy=PSOPS(when=Every(2))), 2)


def test_which_strategies_compare_losses() -> None:
    silent, needy = LocalSGD(when=Every(2)), PSOPS(when=Every(2))
    assert needy.needs_loss
    assert not PSOPS(when=Every(2), fitness="probe").needs_loss
    assert InformedSwarm(trust="loss").needs_loss
    assert not InformedSwarm().needs_loss
    assert Warmup(needy, 4, silent).needs_loss
    assert not Warmup(silent, 4).needs_loss


def test_several_optimizers_step_once_together() -> None:
    """As in torchtitan: one optimizer for each part of the model."""

    def parts(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(model[0].parameters(), LR), torch.optim.Adam(model[2].parameters(), 2 * LR)]

    def train(comm: Group, by_hook: bool) -> list[Any]:
        model = regression()
        optimizers = parts(model)
        sync = Synchronizer(model, RULE, comm)
        hook = OptimizerHook(sync, *optimizers) if by_hook else None
        rounds: list[Any] = []
        for batch in examples(comm, STEPS):
            loss = squared(model, batch)
            loss.backward()
            if hook:
                hook.add_loss(loss)
            for optimizer in optimizers:
                optimizer.step()
            if not hook:
                sync.step(loss, lr=optimizers)
            for optimizer in optimizers:
                optimizer.zero_grad()
        rounds += sync.finish()
        return [sync.steps, sync.rounds, *numbers(model)]

    assert simulate(lambda comm: train(comm, True), 2) == simulate(lambda comm: train(comm, False), 2)


def test_the_optimizers_state_holds_the_swarms() -> None:
    """Saved after 6 steps, in the middle between two rounds; resumed in new objects."""

    def part(comm: Group, start: int, stop: int, saved: Any) -> tuple[Any, list[float]]:
        model = regression()
        optimizer = torch.optim.Adam(model.parameters(), LR)
        sync = Synchronizer(model, RULE, comm)
        OptimizerHook(sync, optimizer)
        if saved:
            model.load_state_dict(saved[0])
            optimizer.load_state_dict(saved[1])
        for batch in examples(comm, STEPS)[start:stop]:
            squared(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        if stop == STEPS:
            sync.finish()
        return state, numbers(model)

    def train(comm: Group) -> list[float]:
        saved, _ = part(comm, 0, 6, None)
        return part(comm, 6, STEPS, saved)[1]

    assert simulate(train, 2) == simulate(by_hand, 2)


def test_a_state_without_the_swarms_is_refused() -> None:
    def load(comm: Group) -> None:
        model = regression()
        bare = torch.optim.Adam(model.parameters(), LR)
        OptimizerHook(Synchronizer(model, RULE, comm), optimizer := torch.optim.Adam(model.parameters(), LR))
        optimizer.load_state_dict(bare.state_dict())

    with pytest.raises(
        CheckpointError, match="missing from the optimizer's state, which was saved without the swarm"
    ):
        simulate(load, 1)


def test_weights_that_are_loaded_without_the_swarm_are_found() -> None:
    """Accelerate loads an optimizer's own state into it when it takes it over; that is no checkpoint."""

    def train(comm: Group) -> None:
        model = regression()
        optimizer = torch.optim.Adam(model.parameters(), LR)
        OptimizerHook(Synchronizer(model, RULE, comm), optimizer)
        model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()})
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()

    with pytest.raises(UsageError, match="was loaded after the Synchronizer was made"):
        simulate(train, 1)


def test_what_is_refused() -> None:
    def make(comm: Group, strategy: Any, *optimizers: Any) -> OptimizerHook:
        return OptimizerHook(Synchronizer(regression(), strategy, comm), *optimizers)

    sgd = torch.optim.SGD(regression().parameters(), LR)
    for strategy, optimizers, why in (
        (RULE, (), "expected at least one optimizer"),
        (RULE, (LR,), "expected an? ?.*Optimizer"),
        (Synchronous(when=Every(1)), (sgd,), "Synchronous synchronizes gradients, which are clipped"),
    ):
        with pytest.raises(UsageError, match=why):
            simulate(lambda comm, s=strategy, o=optimizers: make(comm, s, *o), 1)


def test_events_are_told_and_untold_losses_are_infinite() -> None:
    def train(comm: Group) -> list[Any]:
        model = regression()
        optimizer = torch.optim.SGD(model.parameters(), LR)
        told: list[Any] = []
        hook = OptimizerHook(Synchronizer(model, LocalSGD(when=Every(2)), comm), optimizer, on_event=told.append)
        for _ in range(5):
            optimizer.step()
        hook.finish()
        return [(found.step, found.losses) for found in told]

    assert simulate(train, 2) == [[(2, (math.inf, math.inf)), (4, (math.inf, math.inf))]] * 2
