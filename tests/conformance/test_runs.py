"""Whole runs of every strategy with every trigger: the same in process, in real processes, and when resumed."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from helpers import TIMINGS, VARIANTS, Run, Trainer, options, run, same, timed
from pool import Pool
from swarmstep import STRATEGIES, Comm, Every, Strategy, Synchronizer, simulate

WORKERS = 3  # odd, so that no vector splits evenly
STEPS = 7

every_variant = pytest.mark.parametrize("variant", VARIANTS)
# Every strategy with every trigger; its options with those that reach most code.
CASES = [(v, t) for v in VARIANTS for t in (["warm-up", "vote"] if ":" in v else TIMINGS)]
every_case = pytest.mark.parametrize(("variant", "trigger"), CASES)


def chosen(variant: str, trigger: str) -> Strategy:
    return timed(VARIANTS[variant], trigger)


@functools.cache
def uninterrupted(variant: str, trigger: str, workers: int = WORKERS) -> list[Run]:
    strategy = chosen(variant, trigger)
    return simulate(lambda comm: run(comm, strategy, STEPS), workers)


@every_case
def test_real_processes_equal_simulation_bitwise(pool: Pool, variant: str, trigger: str) -> None:
    found = pool.run(run, chosen(variant, trigger), STEPS, workers=WORKERS)
    assert same(found, uninterrupted(variant, trigger))


# The cuts of "every-1" and "never" lie at the same places of a round as those of the others.
@pytest.mark.parametrize(("variant", "trigger"), [case for case in CASES if case[1] not in ("every-1", "never")])
def test_resumed_at_every_step_equals_uninterrupted_bitwise(variant: str, trigger: str) -> None:
    strategy = chosen(variant, trigger)
    found = simulate(lambda comm: run(comm, strategy, STEPS, resume=True), WORKERS)
    for mine, whole in zip(found, uninterrupted(variant, trigger), strict=True):
        assert same(mine[:4], whole[:4])  # all but the traffic, which counts each new start


@pytest.mark.parametrize("variant", STRATEGIES)
def test_real_processes_resumed_equal_simulation_bitwise(pool: Pool, variant: str) -> None:
    found = pool.run(run, chosen(variant, "warm-up"), STEPS, True, workers=WORKERS)
    for mine, whole in zip(found, uninterrupted(variant, "warm-up"), strict=True):
        assert same(mine[:4], whole[:4])


@every_variant
def test_the_same_again(variant: str) -> None:
    strategy = chosen(variant, "warm-up")
    first = uninterrupted(variant, "warm-up")
    assert same(simulate(lambda comm: run(comm, strategy, STEPS), WORKERS), first)
    assert all(weights.isfinite().all() for found in first for weights in found.weights)


@every_variant
def test_the_rounds_are_where_the_trigger_says(variant: str) -> None:
    rounds = {name: [found.rounds for found in uninterrupted(variant, name)] for name in TIMINGS}
    assert rounds["every-1"] == [[1, 2, 3, 4, 5, 6, 7]] * WORKERS
    assert rounds["every-3"] == [[3, 6]] * WORKERS
    assert rounds["warm-up"] == [[1, 2, 3, 4, 6]] * WORKERS
    assert rounds["never"] == [[]] * WORKERS
    votes = rounds["vote"]
    assert votes[0] == votes[1] == votes[2]
    assert 0 < len(votes[0]) < STEPS


@every_variant
def test_workers_differ_and_a_round_changes_something(variant: str) -> None:
    found = uninterrupted(variant, "every-3")
    assert not same(found[0].weights[2], found[1].weights[2])
    alone = uninterrupted(variant, "never")
    moved = [not same(a.weights[3], b.weights[3]) for a, b in zip(found, alone, strict=True)]
    assert any(moved) == (variant != "independent")


@every_variant
def test_one_worker_trains_alone_and_stays_finite(pool: Pool, variant: str) -> None:
    found = uninterrupted(variant, "every-3", 1)
    assert all(weights.isfinite().all() for weights in found[0].weights)
    assert found[0].traffic == (0, 0)
    assert same(pool.run(run, chosen(variant, "every-3"), STEPS, workers=1), found)


@every_variant
def test_one_result_for_all_unless_the_strategy_says_otherwise(variant: str) -> None:
    ends = [found.weights[-1] for found in uninterrupted(variant, "every-3")]
    assert (same(ends[0], ends[1]) and same(ends[0], ends[2])) == VARIANTS[variant].one_result


def one_round(comm: Comm, strategy: Strategy) -> tuple[list[Tensor], dict[str, Tensor]]:
    trainer = Trainer(dataclasses.replace(strategy, when=Every(3)), comm)
    for _ in range(3):
        trainer.step()
    return list(trainer.weights().split(1)), trainer.sync.state_dict()["fragments"][0]["state"]


@every_variant
def test_the_fast_path_is_within_rounding_after_a_round(pool: Pool, variant: str) -> None:
    strategy = VARIANTS[variant]
    fast = pool.run(one_round, strategy, workers=WORKERS, exact=False)
    exact = simulate(lambda comm: one_round(comm, strategy), WORKERS)
    for (weights, state), (expected, expected_state) in zip(fast, exact, strict=True):
        assert relative(torch.cat(weights), torch.cat(expected)) <= 1e-6
        for name, tensor in state.items():
            assert relative(tensor, expected_state[name]) <= 1e-6


def relative(a: Tensor, b: Tensor) -> float:
    """Return |a - b| / |b| of two vectors; equal infinities count as equal."""
    a, b = a.double().view(-1), b.double().view(-1)
    differ = a != b
    return float((a - b)[differ].norm() / b[b.isfinite()].norm().clamp(min=1e-12)) if differ.any() else 0.0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_changes_random_strategies_only(seed: int) -> None:
    strategy = chosen("pso-ps", "every-3")
    found = simulate(lambda comm: moves(comm, strategy, seed), WORKERS)
    other = simulate(lambda comm: moves(comm, strategy, seed + 10), WORKERS)
    assert not same(found, other)
    plain = dataclasses.replace(VARIANTS["pso-ps:none"], when=Every(3))
    found = simulate(lambda comm: moves(comm, plain, seed), WORKERS)
    assert same(found, simulate(lambda comm: moves(comm, plain, seed + 10), WORKERS))


def moves(comm: Comm, strategy: Strategy, seed: int) -> Tensor:
    """Train on the same data whatever the seed of the rounds."""
    trainer = Trainer(strategy, comm)
    trainer.sync = Synchronizer(trainer.model, strategy, comm, options(seed))
    for _ in range(3):
        trainer.step()
    return trainer.weights()
