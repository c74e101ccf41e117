"""One round of every strategy, looked at closely: all or nothing, contained, and as costly as the card says."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

from helpers import VARIANTS, Trainer, network, options, same
from jobs import poisoned
from swarmstep import Comm, Every, Group, LocalSGD, Never, Strategy, Synchronizer, Warmup, simulate
from swarmstep.errors import CommError
from whole_runs import fast_ones
from wrapped import Wrapped

WORKERS = 3

every_variant = pytest.mark.parametrize("variant", VARIANTS)


def chosen(variant: str, **changes: Any) -> Strategy:
    return dataclasses.replace(VARIANTS[variant], **{"when": Every(3), **changes})


class Failing(Wrapped):
    """Any group, whose calls and those of its parts fail once `left` of them have been made."""

    def __init__(self, inner: Group, whole: Failing | None = None) -> None:
        super().__init__(inner)
        self.whole = whole or self
        self.left, self.calls = 10**9, 0

    def before(self, verb: str, elements: int) -> None:
        self.whole.calls += 1
        if self.whole.calls > self.whole.left:
            raise CommError("the network is gone")

    def split(self, color: int, name: str = "") -> Failing:
        return Failing(super().split(color, name), self.whole)


def fail_at_every_call(comm: Comm, strategy: Strategy, buffers: str | None) -> int:
    """Repeat the second round with its k-th call failing, for every k; return how many calls it makes."""
    failing, gradients = Failing(comm), strategy.target == "gradients"
    trainer = Trainer(strategy, failing, buffers=buffers)
    for _ in range(5):
        trainer.step()
    saved = trainer.save()
    for k in range(100):
        trainer.load(saved)
        loss = trainer.backward() if gradients else trainer.local_step()
        model = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        before, gradient = trainer.sync.state_dict(), trainer.gradient()
        failing.calls, failing.left = 0, k
        try:
            if gradients:
                trainer.sync.reduce(0.1)
            assert trainer.sync.step(loss, lr=0.1) is not None
            return k
        except CommError as error:
            said = str(error)
        assert said == "step 6: the network is gone"
        after = trainer.sync.state_dict()
        assert after["step"] == 6 - gradients
        (part,), (former,) = after["fragments"], before["fragments"]
        assert part["window"]["steps"] == former["window"]["steps"] + 1 - gradients
        assert same(trainer.gradient(), gradient)
        assert same(part["state"], former["state"])
        assert same(after["weights"], before["weights"])
        assert same(dict(trainer.model.state_dict()), model)
        failing.left = 10**9
    raise AssertionError("a round of a hundred calls")


@every_variant
def test_a_round_that_fails_at_any_call_changes_nothing(variant: str) -> None:
    strategy = chosen(variant)
    for buffers in strategy.buffers:
        calls = simulate(lambda comm, b=buffers: fail_at_every_call(comm, strategy, b), WORKERS)
        assert min(calls) == max(calls) >= (1 if variant == "independent" else 2)


@every_variant
def test_a_nan_on_one_rank_raises_on_all_or_is_contained(variant: str) -> None:
    strategy = chosen(variant)
    found = simulate(lambda comm: poisoned(comm, strategy), WORKERS)
    if strategy.contains_not_finite:
        assert (found[0], found[2]) == ("finite", "finite")
    else:
        assert all(f"step 3: the {strategy.target} of rank 1 are not finite" in said for said in found)
        assert all(type(strategy).__name__ in said for said in found)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].target == "weights"])
def test_a_nan_in_the_warm_up_is_contained_by_nobody(variant: str) -> None:
    strategy = Warmup(chosen(variant, when=Never()), 4)
    for said in simulate(lambda comm: poisoned(comm, strategy), WORKERS):
        assert "step 2: the weights of rank 1 are not finite, or 1000 times" in said


def rounds_of(comm: Comm, strategy: Strategy, steps: int) -> tuple[list[int], list[int], int, dict[str, Tensor]]:
    trainer = Trainer(strategy, comm)
    rounds = [report for _ in range(steps) if (report := trainer.step())]
    state = trainer.sync.state_dict()["fragments"][0]["state"]
    elements = sum(trainer.sync._rounds.group.fragments[0].layout.sizes)
    return [r.bytes_sent for r in rounds], [r.bytes_received for r in rounds], elements, state


def formula(text: str, W: int) -> float:
    """Evaluate a card's formula, in which a product may be written without its sign."""
    return float(eval(re.sub(r"(\d) \(", r"\1 * (", text), {"__builtins__": {}, "min": min, "W": W}))


# Single numbers beyond those of every roll call, in bytes sent by each worker for each other worker.
NUMBERS = {"edit": 6 * 8, "pso-ps:probe": 8, "fedpso": 8}
# Traffic that depends on losses, probes or the round before has tests of its own, next to the oracle.
VARIES = ["gasloc:factored", "osp", "pso-ps:historical", "pso-ps:decay", "sparta", "sparta-diloco", "swarm"]
MEMORY = {"gasloc:factored": 3.0}  # more than the card says, which is of the defaults


@pytest.mark.parametrize("workers", fast_ones([1, 5], range(1, 6)))
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v not in VARIES])
def test_metered_bytes_are_the_formula_of_the_card(variant: str, workers: int) -> None:
    strategy = chosen(variant, when=Every(1))
    found = simulate(lambda comm: rounds_of(comm, strategy, 3), workers)
    P = found[0][2]
    numbers = (56 + NUMBERS.get(variant, 0)) * (workers - 1) * workers
    units = formula(strategy.card.traffic, workers) * workers * 4
    for r in range(3):
        sent, received = sum(f[0][r] for f in found), sum(f[1][r] for f in found)
        assert sent == received
        # A mean carries its weight behind the vector.
        assert sent - numbers in (pytest.approx(units * P), pytest.approx(units * (P + 1)))


@pytest.mark.parametrize("workers", fast_ones([5], [2, 5]))
@every_variant
def test_memory_is_what_the_card_says(variant: str, workers: int) -> None:
    found = simulate(lambda comm: rounds_of(comm, chosen(variant), 3), workers)
    for _, _, P, state in found:
        kept = MEMORY.get(variant, float(VARIANTS[variant].card.memory))
        assert sum(tensor.numel() == P for tensor in state.values()) == kept
        small = 16 * workers  # numbers that leave-one-out trust keeps of its probe, EDiT of each tensor
        assert sum(tensor.numel() for tensor in state.values() if tensor.numel() != P) < P + small


@every_variant
def test_every_field_of_the_state_says_whose_it_is(variant: str) -> None:
    def train(comm: Comm) -> Any:
        trainer = Trainer(chosen(variant, when=Every(2)), comm)
        states = []
        for _ in range(6):
            trainer.step()
            states.append(trainer.sync.state_dict()["fragments"][0]["state"])
        return type(trainer.sync._rounds.group.fragments[0].state), states

    found = simulate(train, WORKERS)
    kinds = {n: hint.__metadata__[0] for n, hint in get_type_hints(found[0][0], include_extras=True).items()}
    assert set(kinds.values()) <= {"shared", "own", "per worker"}
    for step in range(6):
        states = [states[step] for _, states in found]
        assert states[0].keys() == kinds.keys()
        for name, kind in kinds.items():
            tensors = [state[name] for state in states]
            first = found[0][1][0][name]
            assert all((t.dtype, t.shape) == (first.dtype, first.shape) for t in tensors), name
            if kind != "own":
                assert all(same(tensor, tensors[0]) for tensor in tensors), name
            if kind == "per worker":
                assert tensors[0].shape[0] == WORKERS


def exchanged(comm: Comm, strategy: Strategy) -> int:
    """Check that `exchange` changes nothing and that what it returns holds tensors only."""
    seen = 0
    real = type(strategy).exchange

    def exchange(self: Strategy, x: Tensor, state: Any, *rest: Any) -> Any:
        nonlocal seen
        before = [x.clone(), *(t.clone() for t in state)]
        message = real(self, x, state, *rest)
        assert same([x, *state], before)
        assert all(isinstance(part, Tensor) for part in message)
        seen += 1
        return message

    trainer = Trainer(strategy, comm)
    object.__setattr__(strategy, "exchange", exchange.__get__(strategy))
    for _ in range(6):
        trainer.step()
    return seen


@every_variant
def test_exchange_changes_neither_x_nor_state(variant: str) -> None:
    assert simulate(lambda comm: exchanged(comm, chosen(variant)), WORKERS) == [2] * WORKERS


@every_variant
def test_init_keeps_no_reference_and_result_changes_nothing(variant: str) -> None:
    def train(comm: Comm) -> None:
        sync = Synchronizer(network(), chosen(variant), comm, options())
        x = sync._replica.flat.read()
        state = sync.strategy.init(x, sync._replica.flat.layout, comm)
        before = [tensor.clone() for tensor in state]
        kept = x.clone()
        torch.testing.assert_close(
            sync.strategy.result(x, state, comm), kept
        )  # all particles start from one point
        assert same([x, *state], [kept, *before])
        x.fill_(7.0)
        assert same(list(state), before)

    simulate(train, WORKERS)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_policy_first_costs_one_broadcast_of_the_buffers(workers: int) -> None:
    def train(comm: Comm, buffers: str) -> tuple[int, int]:
        trainer = Trainer(LocalSGD(when=Every(1)), comm, buffers=buffers)
        report = trainer.step()
        return report.bytes_sent, report.bytes_received

    first = simulate(lambda comm: train(comm, "first"), workers)
    mean = simulate(lambda comm: train(comm, "mean"), workers)
    buffers = 2 * 8 * 4  # running mean and variance of eight channels
    for side in (0, 1):
        assert sum(f[side] for f in first) - sum(f[side] for f in mean) == (workers - 1) * buffers
