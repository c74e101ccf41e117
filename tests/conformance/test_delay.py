"""Rounds that travel while training goes on, mixing, and fragments, against the definition."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from examples import few
from helpers import VARIANTS, Trainer, Vote, before_rounds, run, same
from swarmstep import (
    PSOPS,
    Comm,
    DiLoCo,
    Every,
    InformedSwarm,
    LocalSGD,
    Options,
    Strategy,
    Synchronizer,
    Warmup,
    simulate,
)
from swarmstep.comm.codecs import Int8
from swarmstep.errors import CheckpointError, CommError, UsageError
from whole_runs import DELAYED, simulated

WORKERS = 3
SIZE = 6
Array = NDArray[np.float64]


class Walk(nn.Module):
    """Three modules with a parameter of two elements each, and a buffer in the last."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.ParameterList([torch.full((2,), float(i))]) for i in range(3)])
        self.double()


def drifts(steps: int, workers: int = WORKERS) -> Array:
    return np.random.default_rng(0).normal(size=(steps, workers, SIZE))


def walk(comm: Comm, strategy: Strategy, steps: int, options: Options) -> Array:
    """Move by `drifts`, with a call of `step` after each; return the weights after each step, and at the end."""
    model = Walk()
    sync = Synchronizer(model, strategy, comm, options)
    seen = []
    for drift in drifts(steps, comm.size)[:, comm.rank]:
        with torch.no_grad():
            for parameter, move in zip(model.parameters(), torch.tensor(drift).split(2), strict=True):
                parameter += move
        sync.step(1.0)
        seen.append(torch.cat([p.detach() for p in model.parameters()]).numpy().copy())
    sync.finish()
    seen.append(torch.cat([p.detach() for p in model.parameters()]).numpy().copy())
    return np.stack(seen)


def expected(  # noqa: C901
    steps: int,
    n: int,
    delay: int,
    mix: float | None,
    fragments: int,
    outer: tuple[float, float],
    eager: bool = False,
) -> Array:
    """Return the weights [steps, W, P] of streaming DiLoCo; with outer = (1, 0) of local SGD.

    Fragment k is started at steps t with (t - k n / K) % n = 0, t > 0, and lands `delay` steps later. One that was
    never started keeps what was trained: the mean.
    """
    lr, momentum = outer
    x = np.tile(np.repeat([0.0, 1.0, 2.0], 2), (WORKERS, 1))
    anchor, u, had = x[0].copy(), np.zeros(SIZE), np.zeros(SIZE, dtype=bool)
    owners = np.repeat([0, 1, 2], 2) % fragments
    parts = [np.flatnonzero(owners == k) for k in range(fragments)]
    flights: dict[int, tuple[int, Array, Array]] = {}  # when it lands, where it started, and was gone on from
    seen = []

    def land(k: int) -> None:
        _, x0, ahead = flights.pop(k)
        p = parts[k]
        had[p] = True
        g = anchor[p] - x0[:, p].mean(0)
        u[p] = momentum * u[p] + g
        anchor[p] -= lr * (g + momentum * u[p])
        if mix is None:
            x[:, p] += anchor[p] - ahead[:, p]
        else:
            x[:, p] = mix * x[:, p] + (1 - mix) * anchor[p]

    for t, drift in enumerate(drifts(steps), 1):
        x = x + drift
        for k in range(fragments):
            offset = k * n // fragments
            due = (t - offset) % n == 0
            if k in flights and (due or t >= flights[k][0]):
                land(k)
            if due:
                x0 = x.copy()
                if eager:
                    g = (anchor - x0)[:, parts[k]] / WORKERS
                    x[:, parts[k]] = anchor[parts[k]] - lr * (g + momentum * (momentum * u[parts[k]] + g))
                flights[k] = (t + delay, x0, x.copy())
                if delay == 0:
                    land(k)
        seen.append(x.copy())
    for k in sorted(flights, key=lambda k: flights[k][0]):
        land(k)
    seen.append(np.tile(np.where(had & (outer != (1.0, 0.0)), anchor, x.mean(0)), (WORKERS, 1)))
    return np.stack(seen)


def played(strategy: Strategy, steps: int, **options: Any) -> Array:
    return np.stack(simulate(lambda comm: walk(comm, strategy, steps, Options(**options)), WORKERS), 1)


mixes = st.one_of(st.none(), st.sampled_from([0.0, 0.5, 1.0]))


@few
@given(st.integers(1, 7), st.integers(0, 8), mixes, st.integers(1, 3), st.integers(1, 20))
def test_streaming_diloco_is_its_definition(
    n: int, delay: int, mix: float | None, fragments: int, steps: int
) -> None:
    n = max(n, fragments)
    found = played(DiLoCo(when=Every(n)), steps, delay=delay, mix=mix, fragments=fragments)
    assert np.allclose(found, expected(steps, n, delay, mix, fragments, (0.7, 0.9)), rtol=0, atol=1e-12)


@few
@given(st.integers(1, 7), st.integers(1, 8), st.integers(1, 3), st.integers(1, 20))
def test_eager_updates_are_their_definition(n: int, delay: int, fragments: int, steps: int) -> None:
    n = max(n, fragments)
    found = played(DiLoCo(when=Every(n)), steps, delay=delay, fragments=fragments, eager=True)
    assert np.allclose(found, expected(steps, n, delay, None, fragments, (0.7, 0.9), True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("lr", [0.5, 1.0])
def test_without_momentum_eager_updates_are_those_of_the_paper(lr: float) -> None:
    """Each outer step takes the own fresh displacement and the others' of the round before, all over W."""
    n, steps = 3, 15
    found = played(DiLoCo(lr, 0.0, when=Every(n)), steps, delay=n, eager=True)
    x = np.tile(np.repeat([0.0, 1.0, 2.0], 2), (WORKERS, 1))
    started, old = x.copy(), np.zeros_like(x)
    for t, drift in enumerate(drifts(steps), 1):
        x = x + drift
        if t % n == 0:
            fresh = x - started
            x = started + lr * (fresh + old.sum(0) - old) / WORKERS
            started, old = x.copy(), fresh
        assert np.allclose(found[t - 1], x, rtol=0, atol=1e-12)


def test_eager_updates_resume_and_land_like_the_others() -> None:
    strategy = DiLoCo(when=Every(3))
    whole = simulate(lambda comm: run(comm, strategy, 8, delay=2, eager=True), WORKERS)
    resumed = simulate(lambda comm: run(comm, strategy, 8, 1, delay=2, eager=True), WORKERS)
    late = simulate(lambda comm: run(comm, strategy, 8, delay=2), WORKERS)
    for mine, other, lazy in zip(resumed, whole, late, strict=True):
        assert same(mine[:4], other[:4])
        assert other.rounds == lazy.rounds == [5, 8]
        assert other.traffic == lazy.traffic
        assert same(other.weights[2], lazy.weights[2])
        assert not same(other.weights[3], lazy.weights[3])


def test_a_single_eager_worker_waits_for_nobody() -> None:
    """With one worker its own part of the outer step is all of it: a delay changes nothing."""

    def train(comm: Comm, **given: Any) -> Array:
        return walk(comm, DiLoCo(when=Every(3)), 11, Options(**given))

    at_once = simulate(lambda comm: train(comm), 1)[0]
    eager = simulate(lambda comm: train(comm, delay=2, eager=True), 1)[0]
    assert np.allclose(eager[:-1], at_once[:-1], rtol=0, atol=1e-12)


class Broken:
    """A Comm whose mean fails."""

    def __init__(self, comm: Comm) -> None:
        self.rank, self.size = comm.rank, comm.size

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        raise CommError("mean: every rank had weight 0")


def test_an_eager_round_that_fails_leaves_a_worker_with_its_own_steps() -> None:
    def train(comm: Comm) -> Array:
        model = Walk()
        sync = Synchronizer(model, DiLoCo(when=Every(3)), comm, Options(delay=2, eager=True))
        sync._rounds.group.fragments[0].comm = Broken(comm)  # type: ignore[assignment]
        for step, drift in enumerate(drifts(5)[:, comm.rank], 1):
            with torch.no_grad():
                for parameter, move in zip(model.parameters(), torch.tensor(drift).split(2), strict=True):
                    parameter += move
            if step < 5:
                sync.step(1.0)
        with pytest.raises(CommError, match=r"step 5: .*weight 0"):
            sync.step(1.0)
        return torch.cat([p.detach() for p in model.parameters()]).numpy().copy()

    alone = np.repeat([0.0, 1.0, 2.0], 2) + drifts(5).sum(0)
    np.testing.assert_allclose(np.stack(simulate(train, WORKERS)), alone, atol=1e-12)


@pytest.mark.parametrize("delay", [0, 1, 2, 4, 9])
def test_local_sgd_that_travels_is_its_definition(delay: int) -> None:
    found = played(LocalSGD(when=Every(4)), 11, delay=delay)
    assert np.allclose(found, expected(11, 4, delay, None, 1, (1.0, 0.0)), rtol=0, atol=1e-12)


def test_a_delay_that_nobody_trains_in_changes_nothing() -> None:
    """The limit case: weights that stand still while a round travels land where they would have at once."""

    def train(comm: Comm, delay: int) -> Tensor:
        model = nn.Linear(3, 2)
        sync = Synchronizer(model, PSOPS(when=Every(4)), comm, Options(delay=delay))
        for step in range(8):
            if step % 4 == 0:
                with torch.no_grad():
                    model.weight += comm.rank + step
            sync.step(1.0 + comm.rank)
        sync.finish()
        return model.weight.detach().clone()

    assert same(simulate(lambda comm: train(comm, 0), 3), simulate(lambda comm: train(comm, 3), 3))


@pytest.mark.parametrize(("name", "timing"), DELAYED)
def test_resumed_with_a_message_in_flight_equals_uninterrupted_bitwise(name: str, timing: str) -> None:
    found = simulated(name, timing, 8, resume=1, delay=3)
    for mine, whole in zip(found, simulated(name, timing, 8, delay=3), strict=True):
        assert same(mine[:4], whole[:4])


def test_rounds_land_when_they_should() -> None:
    landed = {timing: simulated("swarm", timing, 8, delay=3)[0].rounds for timing in ("every-3", "warm-up")}
    assert landed == {"every-3": [6], "warm-up": [2, 3, 4, 6]}  # when the next one starts
    near = simulate(lambda comm: run(comm, LocalSGD(when=Every(3)), 8, delay=2), 2)[0].rounds
    assert near == [5, 8]


streaming = functools.partial(run, fragments=2, delay=2, mix=0.5)


def test_fragments_resumed_equal_uninterrupted_bitwise() -> None:
    strategy = DiLoCo(when=Every(3))
    whole = simulate(lambda comm: streaming(comm, strategy, 9), WORKERS)
    resumed = simulate(lambda comm: streaming(comm, strategy, 9, True), WORKERS)
    for mine, other in zip(resumed, whole, strict=True):
        assert same(mine[:4], other[:4])
    assert whole[0].rounds == [3, 5, 6, 8, 9]
    ends = [found.weights[-1] for found in whole]
    assert same(ends[0], ends[1])
    assert same(ends[0], ends[2])


def test_options_that_do_not_go_together_are_named() -> None:
    cases: list[tuple[Strategy, dict[str, Any], str]] = [
        (LocalSGD(), {"delay": -1}, "delay: expected a number of steps, 0 or more, found -1"),
        (LocalSGD(), {"mix": 1.5}, "mix: expected 0 to 1"),
        (DiLoCo(), {"eager": True}, "eager: .* expected a delay of at least 1 and no mix, found delay 0"),
        (DiLoCo(), {"eager": True, "delay": 2, "mix": 0.5}, "found delay 2, mix 0.5"),
        (LocalSGD(), {"eager": True, "delay": 2}, "eager: LocalSGD has no step"),
        (Warmup(DiLoCo(), 3), {"eager": True, "delay": 2}, "eager: Warmup has no step"),
        (LocalSGD(), {"offload": "disk"}, "offload: expected None or 'cpu'"),
        (LocalSGD(when=Every(2)), {"fragments": 3}, "n at least 3"),
        (LocalSGD(when=Vote()), {"fragments": 2}, "expected when=Every"),
        (LocalSGD(), {"fragments": 4}, "fragments: expected 1 to 3"),
        (LocalSGD(), {"fragments": 0}, "fragments: expected 1 to 3"),
        (InformedSwarm(trust="leave_one_out"), {"fragments": 2, "probe": lambda m, s: 1.0}, "whole models"),
    ]
    for strategy, options, said in cases:
        with pytest.raises(UsageError, match=said):
            simulate(lambda comm, s=strategy, o=options: Synchronizer(Walk(), s, comm, Options(**o)), 1)


def healed(comm: Comm, strategy: Strategy, given: dict[str, Any]) -> list[int]:
    """Rank 1's weights turn NaN once; return how many took part in each round."""
    trainer = Trainer(strategy, comm, **given)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)  # a momentum would stay NaN
    said = []
    for step in range(1, 16):
        loss = trainer.local_step()
        if step == 4 and comm.rank == 1:
            with torch.no_grad():
                next(trainer.model.parameters())[0, 0] = torch.nan
        report = trainer.sync.step(loss, lr=0.1)
        said += [report.participants] if report else []
    assert trainer.weights().isfinite().all()
    return said


@pytest.mark.parametrize("name", ["swarm", "median", "trimmed-mean"])
@pytest.mark.parametrize("given", [{"delay": 2}, {"delay": 2, "mix": 0.5}], ids=str)
def test_who_was_left_out_takes_the_others_weights(name: str, given: dict[str, Any]) -> None:
    strategy = dataclasses.replace(VARIANTS[name], when=Every(3))
    for said in simulate(lambda comm: healed(comm, strategy, given), 4):
        assert said[:2] == [4, 3]
        assert said[-1] == 4


def in_the_middle(comm: Comm) -> tuple[Trainer, dict[str, Any]]:
    """Return a trainer with a round under way, and its checkpoint."""
    trainer = Trainer(DiLoCo(when=Every(2)), comm, delay=3, codec=Int8(64))
    for _ in range(5):
        trainer.step()
    return trainer, trainer.sync.state_dict()


def damaged(saved: dict[str, Any]) -> dict[str, Any]:
    """Return what there is to damage: name -> a change of the checkpoint."""
    part = saved["fragments"][0]
    x = part["pending"]["x"]
    flight: dict[str, Any] = {
        "x": x[:-1],
        "buffers": torch.zeros(99),
        "message": {"mean": x[:-1]},
        "roll": {"steps": torch.zeros(7, dtype=torch.float64)},
        "bytes": [1],
        "lands": "soon",
    }
    changes = {
        f"flight.{name}": part | {"pending": part["pending"] | {name: value}} for name, value in flight.items()
    }
    changes |= {
        f"without flight.{name}": part | {"pending": {k: v for k, v in part["pending"].items() if k != name}}
        for name in part["pending"]
    }
    other: dict[str, Any] = {
        "staged": {"residual": x[:-1]},
        "window": {"loss": torch.zeros(2)},
        "state": None,
        "pending": {"x": x},
        "rounds": None,
    }
    changes |= {name: part | {name: value} for name, value in other.items()}
    return {name: saved | {"fragments": [change]} for name, change in changes.items()} | {
        "fragments": saved | {"fragments": [part, part]},
        "double": saved | {"fragments": [part | {"pending": part["pending"] | {"message": {"mean": x.double()}}}]},
    }


def test_a_damaged_message_in_flight_is_named_and_nothing_is_loaded() -> None:
    trainer, saved = simulate(in_the_middle, 1)[0]
    for name, change in damaged(saved).items():
        with pytest.raises(CheckpointError):
            trainer.sync.load_state_dict(change | {"step": 77})
        assert same(trainer.sync.state_dict(), saved), name
    trainer.sync.load_state_dict(saved)
    assert same(trainer.sync.state_dict(), saved)


def test_a_warm_up_that_votes_and_travels_starts_the_strategy_from_its_end() -> None:
    def train(comm: Comm) -> tuple[Tensor, Tensor]:
        trainer = Trainer(Warmup(DiLoCo(when=Vote(0.0)), 9), comm, delay=3)
        while not (report := trainer.step()) or report.step <= 9:
            pass
        state = trainer.sync.state_dict()["fragments"][0]["state"]
        return state["velocity"].norm(), trainer.weights().norm()

    for velocity, weights in simulate(train, 2):
        assert 0 < velocity < 0.2 * weights  # one round's step, not that of the whole warm-up


def struck(comm: Comm, delay: int) -> Tensor:
    """Rank 1 sends its weights plus 1; nobody moves by himself."""
    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight)
    sync = Synchronizer(model, LocalSGD(when=Every(3)), comm, Options(delay=delay))
    with before_rounds(lambda x, step: x.add_(float(comm.rank))):
        for _ in range(5):
            sync.step(1.0)
    return model.weight.detach().clone()


def test_a_fault_does_the_same_to_a_round_that_travels() -> None:
    assert same(simulate(lambda comm: struck(comm, 0), 2), simulate(lambda comm: struck(comm, 2), 2))
