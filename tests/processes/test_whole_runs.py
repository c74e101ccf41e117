"""Whole runs in real processes: bit for bit what the simulation gives."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import FOR_WEIGHTS, VARIANTS, Run, Trainer, run, same, timed
from jobs import poisoned
from pool import Pool
from swarmstep import STRATEGIES, Comm, DiLoCo, Every, InformedSwarm, Strategy, simulate
from swarmstep.comm.codecs import Int8
from whole_runs import CODECS, CODED, DELAYED, KINDS, PLAIN, STEPS, WIRES, WORKERS, fast_ones, simulated


def ran(comm: Comm, strategy: Strategy, steps: int, resume: bool, given: dict[str, Any]) -> Run:
    return run(comm, strategy, steps, resume, **given)


def check(pool: Pool, variant: str, timing: str, steps: int = STEPS, workers: int = WORKERS, **given: Any) -> None:
    """Compare runs in real processes with those in process."""
    found = pool.run(ran, timed(VARIANTS[variant], timing), steps, False, given, workers=workers)
    assert same(found, simulated(variant, timing, steps, workers, **given))


# The rest of PLAIN is resumed in process in the fast suite; between processes it takes the same ways.
@pytest.mark.parametrize(("variant", "timing"), [case for case in PLAIN if case.values[0] in WIRES])
def test_one_strategy_of_each_wire(pool: Pool, variant: str, timing: str) -> None:
    check(pool, variant, timing)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "timing"), [case for case in PLAIN if case.values[0] not in WIRES])
def test_every_strategy(pool: Pool, variant: str, timing: str) -> None:
    check(pool, variant, timing)


@pytest.mark.parametrize(("name", "timing"), DELAYED)
def test_rounds_that_travel(pool: Pool, name: str, timing: str) -> None:
    check(pool, name, timing, 8, delay=3)


@pytest.mark.parametrize(("name", "codec"), CODED)
def test_coded_vectors(pool: Pool, name: str, codec: str) -> None:
    check(pool, name, "every-3", 8, delay=2, codec=CODECS[codec])


@pytest.mark.parametrize("name", KINDS)
def test_one_worker(pool: Pool, name: str) -> None:
    check(pool, name, "every-3", workers=1)


@pytest.mark.parametrize("name", fast_ones(KINDS, STRATEGIES))
def test_resumed_at_every_step(pool: Pool, name: str) -> None:
    timing = "warm-up" if name in FOR_WEIGHTS else "every-1"
    found = pool.run(ran, timed(VARIANTS[name], timing), STEPS, True, {}, workers=WORKERS)
    for mine, whole in zip(found, simulated(name, timing), strict=True):
        assert same(mine[:4], whole[:4])


@pytest.mark.parametrize("how", [{"mix": 0.5}, {"eager": True}], ids=str)
def test_fragments(pool: Pool, how: dict[str, Any]) -> None:
    strategy, given = DiLoCo(when=Every(3)), {"fragments": 2, "delay": 2, **how}
    found = pool.run(ran, strategy, 9, False, given, workers=WORKERS)
    assert same(found, simulate(lambda comm: ran(comm, strategy, 9, False, given), WORKERS))


def test_leave_one_out_tests_what_was_sent(pool: Pool) -> None:
    strategy, given = InformedSwarm(trust="leave_one_out", when=Every(2)), {"codec": Int8(64)}
    found = pool.run(ran, strategy, 8, False, given, workers=WORKERS)
    assert same(found, simulate(lambda comm: ran(comm, strategy, 8, False, given), WORKERS))
    assert all(mine.state[0]["tests"] >= 3 for mine in found)


@pytest.mark.parametrize("variant", fast_ones(KINDS, VARIANTS))
def test_a_nan_on_one_rank_raises_on_all_or_is_contained(pool: Pool, variant: str) -> None:
    strategy = timed(VARIANTS[variant], "every-3")
    found = pool.run(poisoned, strategy, workers=WORKERS)
    assert found == simulate(lambda comm: poisoned(comm, strategy), WORKERS)


def one_round(comm: Comm, strategy: Strategy) -> tuple[list[Tensor], dict[str, Tensor]]:
    trainer = Trainer(dataclasses.replace(strategy, when=Every(3)), comm)
    for _ in range(3):
        trainer.step()
    return list(trainer.weights().split(1)), trainer.sync.state_dict()["fragments"][0]["state"]


@pytest.mark.parametrize("variant", fast_ones(WIRES, VARIANTS))
def test_the_fast_path_is_within_rounding_after_a_round(pool: Pool, variant: str) -> None:
    strategy = VARIANTS[variant]
    fast = pool.run(one_round, strategy, workers=WORKERS, exact=False)
    exact = simulate(lambda comm: one_round(comm, strategy), WORKERS)
    for (weights, state), (expected, expected_state) in zip(fast, exact, strict=True):
        assert relative(torch.cat(weights), torch.cat(expected)) <= 1e-6
        for name, tensor in state.items():
            rounding = 1e-5 if name in ("groups", "lowers") else 1e-6  # these are differences of float32 losses
            assert relative(tensor, expected_state[name]) <= rounding


def relative(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / |b| of two vectors; equal infinities count as equal."""
    a, b = a.double().view(-1), b.double().view(-1)
    differ = a != b
    return float((a - b)[differ].norm() / b[b.isfinite()].norm().clamp(min=1e-12)) if differ.any() else 0.0
