"""Whole runs of every strategy with every timing: the same again, and when resumed."""

from __future__ import annotations

import dataclasses

import pytest
from torch import Tensor

from helpers import VARIANTS, Trainer, options, same, timed
from swarmstep import Comm, Every, Strategy, Synchronizer, simulate
from whole_runs import PLAIN, STEPS, WORKERS, fast_ones, simulated

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_case = pytest.mark.parametrize(("variant", "timing"), PLAIN)


@pytest.mark.parametrize("resume", fast_ones([2], (1, 2)))
@every_case
def test_resumed_equals_uninterrupted_bitwise(variant: str, timing: str, resume: int) -> None:
    found = simulated(variant, timing, resume=resume)
    for mine, whole in zip(found, simulated(variant, timing), strict=True):
        assert same(mine[:4], whole[:4])  # all but the traffic, which counts each new start


@pytest.mark.slow  # to resume says as much
@every_variant
def test_the_same_again(variant: str) -> None:
    timing = "every-3" if VARIANTS[variant].target == "gradients" else "warm-up"
    first = simulated(variant, timing)
    assert same(simulated.__wrapped__(variant, timing), first)
    assert all(weights.isfinite().all() for found in first for weights in found.weights)


ROUNDS = {"every-1": [1, 2, 3, 4, 5, 6, 7], "every-3": [3, 6], "warm-up": [1, 2, 3, 4, 6], "never": []}


@every_case
def test_the_rounds_are_where_the_trigger_says(variant: str, timing: str) -> None:
    rounds = [found.rounds for found in simulated(variant, timing)]
    if timing == "vote":
        assert rounds[0] == rounds[1] == rounds[2]
        assert 0 < len(rounds[0]) < STEPS
    else:
        assert rounds == [ROUNDS[timing]] * WORKERS


@pytest.mark.slow
@every_variant
def test_workers_differ_and_a_round_changes_something(variant: str) -> None:
    found = simulated(variant, "every-3")
    assert not same(found[0].weights[2], found[1].weights[2])
    alone = simulated("independent", "never")
    moved = [not same(a.weights[3], b.weights[3]) for a, b in zip(found, alone, strict=True)]
    assert any(moved) == (variant != "independent")


@every_variant
def test_one_worker_trains_alone_and_stays_finite(variant: str) -> None:
    (found,) = simulated(variant, "every-3", workers=1)
    assert all(weights.isfinite().all() for weights in found.weights)
    assert found.traffic == (0, 0)


@every_variant
def test_one_result_for_all_unless_the_strategy_says_otherwise(variant: str) -> None:
    ends = [found.weights[-1] for found in simulated(variant, "every-3")]
    assert (same(ends[0], ends[1]) and same(ends[0], ends[2])) == VARIANTS[variant].one_result


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_changes_random_strategies_only(seed: int) -> None:
    strategy = timed(VARIANTS["pso-ps"], "every-3")
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
