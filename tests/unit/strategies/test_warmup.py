"""Warm-ups: the rounds of one strategy and then of another, against NumPy and at their limits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from helpers import Trainer, Vote, run, same
from swarmstep import (
    EASGD,
    PSOPS,
    Comm,
    DiLoCo,
    Every,
    GossipRing,
    GradientChange,
    LocalSGD,
    Never,
    QuadraticRule,
    Strategy,
    Synchronizer,
    Warmup,
    When,
    simulate,
)
from swarmstep.comm.codecs import Int8
from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Signal
from swarmstep.strategies.synchronous import Synchronous
from swarmstep.train.build import build_strategy
from swarmstep.train.config import Config
from swarmstep.when import NoState
from whole_runs import fast_if

LAYOUT = Layout(("x",), (3,), 3)
WORKERS, STEPS, SIZE = 3, 12, 5
DRIFTS = np.random.default_rng(0).normal(size=(STEPS, WORKERS, SIZE))
PARAMETERS = 5 * 8 + 8 + 8 + 8 + 8 * 3 + 3  # of the network in helpers
Array = NDArray[np.float64]


def asked(when: When, steps: int) -> list[int]:
    """Return the steps after which a round is due."""
    state = when.init(LAYOUT, 4)
    signals = [Signal(n, 0, 0.1, lambda: 1.0, lambda: torch.zeros(3), None, LAYOUT) for n in range(1, steps + 1)]
    return [signal.step for signal in signals if when.due(state, signal)]


def walk(comm: Comm, strategy: Strategy) -> Array:
    """Move by `DRIFTS`; return the weights after each step, and at the end."""
    model = nn.Linear(SIZE, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    sync = Synchronizer(model, strategy, comm)
    seen = []
    for drift in DRIFTS[:, comm.rank]:
        with torch.no_grad():
            model.weight += torch.from_numpy(drift)
        sync.step(1.0)
        seen.append(model.weight.detach().numpy().copy()[0])
    sync.finish()
    return np.array([*seen, model.weight.detach().numpy()[0]])


class Oracle:
    """Weights [W, P] of all workers, moved by rounds as in the papers."""

    def __init__(self) -> None:
        self.x = np.zeros((WORKERS, SIZE))
        self.anchor, self.velocity = np.zeros(SIZE), np.zeros(SIZE)

    def mean(self) -> None:
        self.x[:] = self.x.mean(axis=0)

    def begin(self) -> None:
        """Start what follows from the common weights."""
        self.anchor, self.velocity = self.x[0].copy(), np.zeros(SIZE)

    def diloco(self, lr: float, momentum: float) -> None:
        g = self.anchor - self.x.mean(axis=0)
        self.velocity = momentum * self.velocity + g
        self.anchor = self.anchor - lr * (g + momentum * self.velocity)
        self.x[:] = self.anchor

    def easgd(self, beta: float) -> None:
        a, x = beta / WORKERS, self.x.copy()
        self.x += a * (self.anchor - x)
        self.anchor = self.anchor + a * (x - self.anchor).sum(axis=0)


def test_means_and_then_an_outer_optimizer() -> None:
    oracle, expected = Oracle(), []
    for step, drift in enumerate(DRIFTS, 1):
        oracle.x += drift
        if step <= 4:
            oracle.mean()
            oracle.begin()
        elif step % 3 == 0:
            oracle.diloco(0.7, 0.9)
        expected.append(oracle.x.copy())
    expected.append(np.broadcast_to(oracle.anchor, (WORKERS, SIZE)))
    found = simulate(lambda comm: walk(comm, Warmup(DiLoCo(when=Every(3)), 4)), WORKERS)
    np.testing.assert_allclose(np.stack(found, 1), np.stack(expected), rtol=1e-12, atol=1e-14)


def test_an_outer_optimizer_and_then_elastic_strings() -> None:
    """The warm-up is any strategy, with a state of its own; it ends with a round at its last step."""
    oracle, expected, rounds = Oracle(), [], []
    for step, drift in enumerate(DRIFTS, 1):
        oracle.x += drift
        if step <= 5 and (step % 2 == 0 or step == 5):
            oracle.diloco(0.5, 0.6)
            rounds.append(step)
        elif step > 5 and step % 4 == 0:
            oracle.easgd(0.9)
            rounds.append(step)
        expected.append(oracle.x.copy())
    expected.append(np.broadcast_to(oracle.anchor, (WORKERS, SIZE)))
    strategy = Warmup(EASGD(when=Every(4)), 5, first=DiLoCo(0.5, 0.6, when=Every(2)))
    found = simulate(lambda comm: walk(comm, strategy), WORKERS)
    np.testing.assert_allclose(np.stack(found, 1), np.stack(expected), rtol=1e-12, atol=1e-14)
    assert rounds == asked(strategy.when, STEPS)


@given(st.integers(0, 12), st.integers(1, 7))
def test_a_warm_up_does_not_shift_the_schedule_behind_it(steps: int, n: int) -> None:
    expected = sorted({*range(1, steps + 1), *range(n, 41, n)})
    assert asked(Warmup(LocalSGD(when=Every(n)), steps).when, 40) == expected


def test_training_alone_first() -> None:
    assert asked(Warmup(LocalSGD(when=Every(4)), 6, first=LocalSGD(when=Never())).when, 16) == [6, 8, 12, 16]


def test_warm_ups_may_follow_each_other() -> None:
    then = Warmup(DiLoCo(when=Every(6)), 8, first=LocalSGD(when=Every(4)))
    twice = Warmup(then, 2)
    assert asked(twice.when, 18) == [1, 2, 4, 8, 12, 18]
    assert [twice.at(step) for step in (2, 3, 8, 9)] == [twice.first, then.first, then.first, then.then]


def test_a_warm_up_asks_what_follows_at_every_step() -> None:
    """What follows has seen every step, so that its windows are full when its time comes."""
    warm = Warmup(LocalSGD(when=Vote()), 3).when
    state: Any = warm.init(LAYOUT, 4)
    for n in range(1, 6):
        warm.due(state, Signal(n, 0, None, lambda: 1.0, lambda: torch.zeros(3), None, LAYOUT))
        assert state.asked == n
    assert warm.voting
    assert not Warmup(LocalSGD(), 3).when.voting
    assert Warmup(LocalSGD(when=Every(2)), 3).when.init(LAYOUT, 4) == NoState()


def test_whose_turn_it_is() -> None:
    then = PSOPS(when=Every(1))
    assert [Warmup(then, 2).at(step) for step in (1, 2, 3)] == [LocalSGD(when=Every(1))] * 2 + [then]
    assert then.at(1) is then
    assert Warmup(then, 0).at(1) is then


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Warmup(PSOPS(), -1), "Warmup: expected steps >= 0, found -1"),
        (
            lambda: Warmup(PSOPS(), 1, first=LocalSGD(when=Vote())),
            "Warmup: expected first.when=Every(n), with one n for all ranks, or Never(), found Vote(factor=1.0)",
        ),
        (lambda: Warmup(PSOPS(), 1, first=LocalSGD(when=Every((1, 2)))), "found Every(n=(1, 2))"),
        (lambda: Warmup(Synchronous(), 1), "expected two strategies that synchronize weights"),
        (lambda: Warmup(PSOPS(), 1, first=GossipRing()), "leaves a vector common to all ranks, found GossipRing"),
    ],
)
def test_arguments_out_of_range_are_named(make: Any, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert said in str(caught.value)


def test_a_combination_has_no_rounds_of_its_own() -> None:
    x = torch.zeros(3)
    with pytest.raises(UsageError, match=r"ask the strategy that Warmup\.at"):
        simulate(lambda comm: Warmup(LocalSGD(), 3).init(x, LAYOUT, comm), 1)


def states(comm: Comm, strategy: Strategy, steps: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    trainer = Trainer(strategy, comm)
    found = []
    for _ in range(steps):
        trainer.step()
        found.append((trainer.weights(), trainer.sync.state_dict()["fragments"][0]["state"]))
    return found


def test_rounds_of_a_warm_up_are_plain_means_whatever_the_strategy() -> None:
    swarm = simulate(lambda comm: states(comm, Warmup(PSOPS(when=Never()), 5), 7), 3)
    # PSO-PS keeps BatchNorm's statistics local by default, so the means of the parameters are compared.
    mean = simulate(lambda comm: states(comm, LocalSGD(when=Every(1)), 7), 3)
    for rank in range(3):
        for step in range(5):
            assert same(swarm[rank][step][0][:PARAMETERS], mean[rank][step][0][:PARAMETERS])
        assert not same(swarm[rank][6][0], mean[rank][6][0])


def test_the_strategy_starts_from_the_end_of_the_warm_up() -> None:
    found = simulate(lambda comm: states(comm, Warmup(PSOPS(when=Every(2)), 3), 3), 3)
    for rank in range(3):
        assert found[rank][1][1] == {}  # of a plain mean
        weights, state = found[rank][2]
        assert same(state["leader"], found[0][2][1]["leader"])
        assert same(state["leader"][:PARAMETERS], weights[:PARAMETERS])
        assert same(state["best"], state["leader"])
        assert not state["velocity"].any()
        assert state["owner"] == -1


def test_a_warm_up_of_the_whole_run_ends_with_the_mean() -> None:
    for then in (PSOPS(when=Every(2)), DiLoCo(when=Every(2))):
        found = simulate(lambda comm, s=then: run(comm, Warmup(s, 9), 4), 2)
        mean = simulate(lambda comm: run(comm, LocalSGD(when=Every(1)), 4), 2)
        assert same(found[0].weights[-1], found[1].weights[-1])
        assert same(found[0].weights[-1][:PARAMETERS], mean[0].weights[-1][:PARAMETERS])


@pytest.mark.parametrize(
    "given",
    [fast_if(False, {}), fast_if(False, {"delay": 2}), {"codec": Int8(16)}, {"delay": 1, "mix": 0.5}],
    ids=str,
)
def test_two_states_resume_bitwise(given: dict[str, Any]) -> None:
    strategy = Warmup(EASGD(when=Every(3)), 5, first=DiLoCo(when=Every(2)))
    whole = simulate(lambda comm: run(comm, strategy, 9, **given), WORKERS)
    found = simulate(lambda comm: run(comm, strategy, 9, True, **given), WORKERS)
    for mine, expected in zip(found, whole, strict=True):
        assert same(mine[:4], expected[:4])


@pytest.mark.parametrize("steps", [4, 7])
@pytest.mark.parametrize("sources", [[2, 0], [1, None, 0, 2]])
def test_a_changed_group_goes_on_where_the_warm_up_was(steps: int, sources: list[int | None]) -> None:
    strategy = Warmup(EASGD(when=Every(3)), 5, first=DiLoCo(when=Every(2)))

    def begin(comm: Comm) -> bytes:
        trainer = Trainer(strategy, comm)
        for _ in range(steps):
            trainer.step()
        return trainer.save()

    saved = simulate(begin, WORKERS)

    def go_on(comm: Comm) -> tuple[list[str], list[str], Tensor]:
        trainer = Trainer(strategy, comm)
        source = sources[comm.rank]
        parts = torch.load(io.BytesIO(saved[0 if source is None else source]), weights_only=True)
        trainer.model.load_state_dict(parts["model"])
        trainer.sync.load_state_dict(parts["sync"], sources)
        before = [*trainer.sync.state_dict()["fragments"][0]["state"]]
        for _ in range(6):
            trainer.step()
        after = [*trainer.sync.state_dict()["fragments"][0]["state"]]
        trainer.sync.finish()
        return before, after, trainer.weights()

    found = simulate(go_on, len(sources))
    assert all(before == (["anchor", "velocity", "radius"] if steps < 5 else ["centre"]) for before, _, _ in found)
    assert all(after == ["centre"] for _, after, _ in found)
    assert all(same(weights, found[0][2]) for _, _, weights in found)


def test_on_the_command_line() -> None:
    def built(when: str) -> Strategy:
        return build_strategy(Config("digits", strategy="diloco", when=when, every=8))

    assert built("warmup:100,qsr:4,0.05") == Warmup(DiLoCo(when=QuadraticRule(4, 0.05)), 100)
    assert built("warmup:100,change:0.2") == Warmup(DiLoCo(when=GradientChange(0.2)), 100)
    assert built("warmup:100") == Warmup(DiLoCo(when=Every(8)), 100)
    for wrong in ("warmup:", "warmup:x", "warmup:-1", "warmup:3,warmup:3", "warmup:3,nope"):
        with pytest.raises(UsageError, match=r"expected every:N, .*warmup:STEPS,SPEC, .*qsr:BASE,ALPHA"):
            built(wrong)
