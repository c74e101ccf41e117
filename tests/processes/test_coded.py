"""Coded vectors in real processes: bit for bit those of the simulation."""

from __future__ import annotations

from typing import Any

import pytest

from coded_jobs import nobody, play, reused, split_up, verbs, weights_of
from helpers import same
from pool import Pool
from swarmstep import simulate
from swarmstep.comm.codecs import Bfloat16, Codec, Int4, Int8, TopK


@pytest.mark.parametrize("codec", [Bfloat16(), Int8(block=8), Int4(), TopK(0.1)], ids=str)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_rounds(pool: Pool, codec: Codec, workers: int) -> None:
    weights = weights_of(workers, 3)
    for referenced in (True, False)[: 1 if codec.needs_reference else 2]:
        expected = simulate(lambda comm: play(comm, codec, 333, weights, referenced), workers)  # noqa: B023
        for exact in (True, False):
            found = pool.run(play, codec, 333, weights, referenced, workers=workers, exact=exact)
            assert same(found, expected)


@pytest.mark.parametrize("codec", [Bfloat16(), Int8(block=8), Int4(), TopK(0.1)], ids=str)
def test_every_verb(pool: Pool, codec: Codec) -> None:
    for referenced in (True, False)[: 1 if codec.needs_reference else 2]:
        found = pool.run(verbs, codec, referenced, workers=3)
        assert same(found, simulate(lambda comm: verbs(comm, codec, referenced), 3))  # noqa: B023


@pytest.mark.parametrize(("job", "workers"), [(nobody, 3), (split_up, 4), (reused, 2)])
def test_the_same_as_in_process(pool: Pool, job: Any, workers: int) -> None:
    assert same(pool.run(job, workers=workers), simulate(job, workers))
