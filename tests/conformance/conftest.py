"""The Comms that take no process: in process, plain and metered."""

from __future__ import annotations

from typing import Any

import pytest

from comm_suite import World
from swarmstep import Comm, Metered, simulate


@pytest.fixture(params=["sim", "metered"])
def world(request: pytest.FixtureRequest) -> World:
    def run(function: Any, *arguments: Any, workers: int) -> list[Any]:
        def train(comm: Comm) -> Any:
            return function(Metered(comm) if request.param == "metered" else comm, *arguments)

        return simulate(train, workers)

    return World(request.param, run)
