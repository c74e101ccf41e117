"""Real processes that do not agree at the start, and that start from what rank 0 holds."""

from __future__ import annotations

import pytest

from agreement_jobs import CASES, Kinds, build, start
from helpers import same
from pool import Pool
from swarmstep.errors import Disagreement


@pytest.mark.parametrize("case", ["strategy", "shape", "extra frozen", "probe"])
def test_every_real_process_says_the_same(pool: Pool, case: str) -> None:
    odd, said = CASES[case]
    outcomes = pool.outcomes(build, odd, workers=3)
    assert all(isinstance(error, Disagreement) and said in str(error) for error in outcomes)


def test_all_start_from_everything_that_rank_0_holds(pool: Pool) -> None:
    first = Kinds(1)
    for found in pool.run(start, workers=3):
        assert same(found, dict(first.state_dict()))
