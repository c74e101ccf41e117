"""States of optimizers that rounds average, and packets of SparseLoCo, in real processes: as in one."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from helpers import same
from inner import trained
from pool import Pool
from swarmstep import DiLoCo, Every, InformedSwarm, SparseLoCo, Strategy, simulate

WORKERS = 3


@pytest.mark.parametrize(
    ("strategy", "given"),
    [
        (DiLoCo(None, None, when=Every(1)), {"optimizer_state": {"exp_avg": 3, "exp_avg_sq": 2}}),
        (
            InformedSwarm(when=Every(2)),
            {"optimizer_state": "mean", "codec": SparseLoCo(kept=3, chunk=16, clip=True)},
        ),
    ],
    ids=["diloco", "swarm"],
)
def test_processes_and_simulation_agree_bitwise(pool: Pool, strategy: Strategy, given: dict[str, Any]) -> None:
    found = pool.run(_run, strategy, given, workers=WORKERS)
    assert same(found, simulate(lambda comm: _run(comm, strategy, given), WORKERS))


def _run(comm: Any, strategy: Strategy, given: dict[str, Any]) -> list[Tensor]:
    return trained(comm, strategy, 6, **given)
