"""Hierarchical averaging in real processes: what the simulation gives."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from helpers import TIMINGS, Trainer, run, same, timed
from pool import Pool
from swarmstep import Comm, Every, Hierarchical, Strategy, simulate
from swarmstep.errors import NotFinite
from whole_runs import fast_ones

WORKERS, STEPS = 4, 9
PAIRS = Hierarchical(local_size=2, outer_every=2)


@pytest.mark.parametrize("trigger", fast_ones(TIMINGS[::2], TIMINGS))
def test_real_processes_equal_simulation_bitwise_and_so_does_a_run_resumed_at_each_step(
    pool: Pool, trigger: str
) -> None:
    strategy = timed(PAIRS, trigger)
    whole = simulate(lambda comm: run(comm, strategy, STEPS), WORKERS)
    assert same(pool.run(run, strategy, STEPS, workers=WORKERS), whole)
    for mine, expected in zip(simulate(lambda c: run(c, strategy, STEPS, True), WORKERS), whole, strict=True):
        assert same(mine[:4], expected[:4])
    if trigger == "warm-up":
        for mine, expected in zip(pool.run(run, strategy, STEPS, True, workers=WORKERS), whole, strict=True):
            assert same(mine[:4], expected[:4])


def uneven(comm: Comm, strategy: Strategy) -> list[Tensor]:
    """Train; the second host finishes first, one worker after the other."""
    trainer = Trainer(strategy, comm)
    weights = []
    for _ in range([9, 8, 5, 3][comm.rank]):
        trainer.step()
        weights.append(trainer.weights())
    trainer.sync.finish()
    return [*weights, trainer.weights()]


def test_workers_that_finish_early(pool: Pool) -> None:
    strategy = dataclasses.replace(PAIRS, when=Every(1))
    found = simulate(lambda comm: uneven(comm, strategy), WORKERS)
    assert same(pool.run(uneven, strategy, workers=WORKERS), found)
    assert all(same(ends[-1], found[0][-1]) for ends in found)


def one_outer_round(comm: Comm) -> Tensor:
    trainer = Trainer(dataclasses.replace(PAIRS, when=Every(1)), comm)
    trainer.step()
    trainer.step()
    return trainer.weights()


def test_the_fast_path_is_within_rounding(pool: Pool) -> None:
    exact = simulate(one_outer_round, WORKERS)
    for fast, expected in zip(pool.run(one_outer_round, workers=WORKERS, exact=False), exact, strict=True):
        torch.testing.assert_close(fast, expected, rtol=1e-6, atol=1e-6)


def poisoned(comm: Comm, at: int) -> str:
    trainer = Trainer(dataclasses.replace(PAIRS, when=Every(3)), comm)
    try:
        for step in range(8):
            loss = trainer.local_step()
            if step == at and comm.rank == 1:
                with torch.no_grad():
                    next(trainer.model.parameters())[0, 0] = torch.nan
            trainer.sync.step(loss, lr=0.1)
        return "nothing"
    except NotFinite as error:
        return str(error)


@pytest.mark.parametrize("step", [3, 6])  # inside the hosts, and where they meet
def test_a_nan_on_one_rank_raises_on_all(pool: Pool, step: int) -> None:
    found = simulate(lambda comm: poisoned(comm, step - 1), WORKERS)
    assert all(f"step {step}: the weights of rank 1 are not finite, or 1000 times" in said for said in found)
    assert pool.run(poisoned, step - 1, workers=WORKERS) == found
