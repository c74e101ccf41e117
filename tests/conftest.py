"""What all tests share: one thread for torch, Hypothesis, real processes, and where there may be none."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, and for the processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings

from swarmstep.launch.stopping import SIGNALS

pytest.register_assert_rewrite("comm_suite", "coded_jobs", "rounds")

pytest_plugins = ["alone", "forking", "pool"]

torch.set_num_threads(1)

# Deadlines are timing asserts. Few examples, always the same ones, in `make test`; many fresh ones in
# `make test-slow`, which prints what repeats a failure: keep that as an @example.
settings.register_profile(
    "fast",
    deadline=None,
    derandomize=True,
    max_examples=20,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "long", settings.get_profile("fast"), derandomize=False, max_examples=400, print_blob=True
)
settings.load_profile("fast")  # unless --hypothesis-profile names the other


@pytest.fixture
def handlers() -> Iterator[None]:
    """Handle signals as before after the test: who was asked to stop does not, since it is about to end."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
