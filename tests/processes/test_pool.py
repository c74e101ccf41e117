"""The pool of processes itself: a failed test must not poison the next."""

from __future__ import annotations

import os

import pytest
import torch

from pool import SIZE, Pool, meet
from swarmstep import Comm
from swarmstep.errors import UsageError


def where(comm: Comm) -> tuple[int, int]:
    return comm.rank, comm.size


def fail_together(comm: Comm) -> None:
    raise UsageError(f"rank {comm.rank} fails")


def fail_alone(comm: Comm) -> None:
    if comm.rank == 1:
        os._exit(3)
    comm.gather(torch.zeros(1))


@pytest.mark.parametrize("workers", range(1, SIZE + 1))
def test_the_first_so_many_processes_form_a_group(pool: Pool, workers: int) -> None:
    assert pool.run(where, workers=workers) == [(rank, workers) for rank in range(workers)]
    assert pool.run(meet, 1.0, workers=workers) == [True] * workers


def test_exceptions_come_back_and_the_processes_stay(pool: Pool) -> None:
    pool.run(where)
    starts = pool.starts
    with pytest.raises(UsageError, match="rank 0 fails"):
        pool.run(fail_together)
    assert [str(error) for error in pool.outcomes(fail_together)] == [f"rank {r} fails" for r in range(SIZE)]
    assert pool.run(where) == [(rank, SIZE) for rank in range(SIZE)]
    assert pool.starts == starts


def test_a_lost_process_is_replaced() -> None:
    pool = Pool(2)
    try:
        outcomes = pool.outcomes(fail_alone)
        assert all(isinstance(outcome, Exception) for outcome in outcomes)
        assert pool.run(where) == [(0, 2), (1, 2)]
        assert pool.starts == 2
    finally:
        pool.close()
