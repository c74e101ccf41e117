"""One fork_server process for all supervisors that the tests of a module make: it takes seconds to start."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

import swarmstep.launch.fork_server
from swarmstep.elastic import supervisor
from swarmstep.elastic.supervisor import Supervisor
from swarmstep.launch.fork_server import ForkServer

LIMIT = 60.0  # seconds; a hang, not a measurement


@pytest.fixture(scope="module")
def fork_server() -> Iterator[ForkServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swarmstep.launch.fork_server, "PRELOADED_MODULES", ())  # the workers here need none of it
        with ForkServer(dict(os.environ)) as fork_server:
            yield fork_server


@pytest.fixture
def supervisors(fork_server: ForkServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Supervisor]]:
    """Yield a list for the supervisors of a test; the workers that they leave are ended."""
    monkeypatch.setattr(supervisor, "ForkServer", lambda environment: nullcontext(fork_server))
    made: list[Supervisor] = []
    yield made
    left = {pid for one in made for pid in one.pids.values()}
    for pid in left:
        fork_server.send_signal(pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while left:
        assert time.monotonic() < deadline
        left -= {pid for pid, _ in fork_server.ended(1.0)}
