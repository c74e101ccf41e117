"""Tasks in the background: in order within a queue, waited for by their own registry only."""

from __future__ import annotations

import threading
import time

import pytest

from swarmstep.comm import background
from swarmstep.comm.background import TaskQueue, TaskRegistry

SOON = 30.0  # seconds; far beyond what any wait here should take


def test_tasks_of_a_queue_run_in_order_and_after_a_failure() -> None:
    queue, gate, seen = TaskQueue(TaskRegistry()), threading.Event(), list[int]()

    def first() -> None:
        gate.wait(SOON)
        seen.append(1)
        raise ValueError("the first")

    tasks = [queue.start(first), queue.start(lambda: seen.append(2)), queue.start(lambda: seen.append(3))]
    assert seen == []
    gate.set()
    queue.registry.settle()
    assert seen == [1, 2, 3]
    assert not queue.registry.running
    for _ in range(2):
        with pytest.raises(ValueError, match="the first"):
            tasks[0].result()


def test_a_registry_waits_for_its_own_tasks_only() -> None:
    gate, slow, quick = threading.Event(), TaskRegistry(), TaskRegistry()
    blocked = slow.start(lambda: gate.wait(SOON))
    assert quick.start(lambda: 5).result() == 5
    began = time.monotonic()
    quick.settle()
    assert time.monotonic() - began < background.LAST_WAIT / 2
    slow.settle(time.monotonic() + 0.05)  # its own deadline ends the wait
    assert slow.running == {blocked}
    gate.set()
    slow.settle()
    assert blocked.result() is True
    assert not slow.running
