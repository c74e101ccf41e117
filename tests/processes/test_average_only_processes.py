"""Parameters that are averaged only, in real processes: the same bits as in one."""

from __future__ import annotations

from typing import Any

import pytest

from dual import run
from helpers import same
from pool import Pool
from swarmstep import DiLoCo, Every, InformedSwarm, Int8, Strategy, Synchronous, simulate

WORKERS = 3


@pytest.mark.parametrize(
    ("strategy", "given"),
    [
        (DiLoCo(when=Every(3)), {}),
        (DiLoCo(when=Every(4)), {"delay": 2, "fragments": 2}),
        (InformedSwarm(when=Every(3)), {"codec": Int8()}),
        (Synchronous(when=Every(1)), {}),
    ],
    ids=["diloco", "delay", "swarm", "synchronous"],
)
def test_processes_and_simulation_agree_bitwise(pool: Pool, strategy: Strategy, given: dict[str, Any]) -> None:
    found = pool.run(_run, strategy, given, workers=WORKERS)
    assert same([*map(list, found)], [*map(list, simulate(lambda comm: _run(comm, strategy, given), WORKERS))])


def _run(comm: Any, strategy: Strategy, given: dict[str, Any]) -> Any:
    return run(comm, strategy, 6, **given)
