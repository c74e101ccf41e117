"""The Comms of real processes: with exact and with fast sums."""

from __future__ import annotations

from typing import Any

import pytest

from comm_suite import World
from pool import Pool


@pytest.fixture(params=["exact", "fast"])
def world(request: pytest.FixtureRequest, pool: Pool) -> World:
    def run(function: Any, *arguments: Any, workers: int) -> list[Any]:
        return pool.run(function, *arguments, workers=workers, exact=request.param == "exact")

    return World(request.param, run)
