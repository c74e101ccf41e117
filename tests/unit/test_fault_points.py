"""Fault points reach the hook of their own context, and no other."""

from __future__ import annotations

import pytest
import torch

from swarmstep import Comm, Every, LocalSGD, Options, Synchronizer, fault_points, simulate
from swarmstep.comm.background import TaskRegistry

A_ROUND = ["roll call", "roll called", "exchanged", "decided", "landing", "landed"]


def reached(comm: Comm, options: Options, steps: int = 2) -> list[str]:
    points: list[str] = []
    with fault_points.interfering(lambda point, **_: points.append(point)):
        sync = Synchronizer(torch.nn.Linear(2, 2), LocalSGD(when=Every(2)), comm, options)
        for _ in range(steps):
            sync.step(1.0)
    sync.finish()
    return points


def test_a_round_passes_its_points_in_their_order() -> None:
    entered = ["started", "entering", "entered"]
    assert simulate(lambda comm: reached(comm, Options()), 2) == [[*entered, "round opened", *A_ROUND]] * 2
    assert (
        simulate(lambda comm: reached(comm, Options(delay=1), 3), 2) == [[*entered, "round opened", *A_ROUND]] * 2
    )


def test_a_hook_is_that_of_one_simulated_worker() -> None:
    def train(comm: Comm) -> list[str]:
        if comm.rank == 0:
            return reached(comm, Options())
        sync = Synchronizer(torch.nn.Linear(2, 2), LocalSGD(when=Every(2)), comm)
        for _ in range(2):
            sync.step(1.0)
        sync.finish()
        return []

    first, second = simulate(train, 2)
    assert first
    assert second == []


def test_hooks_within_one_another_are_all_called_and_end_with_their_blocks() -> None:
    said: list[tuple[str, str]] = []
    with fault_points.interfering(lambda point, **_: said.append(("outer", point))):
        with fault_points.interfering(lambda point, **_: said.append(("inner", point))):
            fault_points.reach("a")
        fault_points.reach("b")
        assert fault_points.watched()
    fault_points.reach("c")
    assert not fault_points.watched()
    assert said == [("outer", "a"), ("inner", "a"), ("outer", "b")]


def test_a_task_in_the_background_reaches_the_hook_of_who_started_it() -> None:
    said: list[str] = []
    with fault_points.interfering(lambda point, **_: said.append(point)):
        task = TaskRegistry().start(lambda: fault_points.reach("there"))
    task.result()
    assert said == ["there"]


def test_what_a_hook_raises_comes_out_of_the_step() -> None:
    def strike(point: str, **_: object) -> None:
        if point == fault_points.EXCHANGED:
            raise OSError("the disk is full")

    def train(comm: Comm) -> None:
        sync = Synchronizer(torch.nn.Linear(2, 2), LocalSGD(when=Every(1)), comm)
        with fault_points.interfering(strike):
            sync.step(1.0)

    with pytest.raises(OSError, match="the disk is full"):
        simulate(train, 1)
