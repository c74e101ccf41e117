"""One preloaded process for all supervisors that the tests of a module make: it takes seconds to start."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext

import pytest

import swarmstep.bench.preloaded
from swarmstep.bench import supervisor
from swarmstep.bench.preloaded import Preloaded
from swarmstep.bench.supervisor import Supervisor

LIMIT = 60.0  # seconds; a hang, not a measurement


@pytest.fixture(scope="module")
def preloaded() -> Iterator[Preloaded]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(swarmstep.bench.preloaded, "PRELOADED", ())  # the workers here need none of it
        with Preloaded(dict(os.environ)) as preloaded:
            yield preloaded


@pytest.fixture
def supervisors(preloaded: Preloaded, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Supervisor]]:
    """Yield a list for the supervisors of a test; the workers that they leave are ended."""
    monkeypatch.setattr(supervisor, "Preloaded", lambda environment: nullcontext(preloaded))
    made: list[Supervisor] = []
    yield made
    left = {pid for one in made for pid in one.pids.values()}
    for pid in left:
        preloaded.send_signal(pid, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT
    while left:
        assert time.monotonic() < deadline
        left -= {pid for pid, _ in preloaded.ended(1.0)}
