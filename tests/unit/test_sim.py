"""The in-process world: one worker at a time, deterministic, and errors instead of hangs."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from helpers import run, same
from swarmstep import PSOPS, Comm, Every, LocalSGD, SimComm, Synchronizer, simulate
from swarmstep.errors import CollectiveMismatch, CommError, UsageError


def test_results_come_in_rank_order() -> None:
    assert simulate(lambda comm: (comm.rank, comm.size), 5) == [(rank, 5) for rank in range(5)]
    assert all(isinstance(comm, SimComm) for comm in simulate(lambda comm: comm, 2))


def test_one_worker_runs_at_a_time_and_the_order_is_always_the_same() -> None:
    def train(comm: Comm, order: list[int], running: list[int]) -> None:
        for _ in range(4):
            running.append(comm.rank)
            assert running == [comm.rank]
            order.append(comm.rank)
            sum(range(20000))  # long enough for another thread to take over, if it could
            running.remove(comm.rank)
            comm.gather(torch.zeros(1))

    orders: list[list[int]] = []
    for _ in range(2):
        order: list[int] = []
        running: list[int] = []
        simulate(lambda comm, o=order, r=running: train(comm, o, r), 4)
        orders.append(order)
    assert orders[0] == orders[1]
    assert sorted(orders[0][:4]) == [0, 1, 2, 3]


def drawn(comm: Comm, extra: int = 0) -> torch.Tensor:
    """Draw before, between and after collectives; rank 1 draws `extra` numbers more in between."""
    first = torch.rand(3)
    comm.gather(torch.zeros(1))
    torch.rand(extra if comm.rank == 1 else 0)
    comm.gather(torch.zeros(1))
    return torch.cat([first, torch.rand(3)])


def test_rank_0_goes_on_from_the_callers_random_state() -> None:
    torch.manual_seed(4)
    expected = torch.rand(6)
    torch.manual_seed(4)
    assert same(simulate(drawn, 3)[0], expected)
    assert same(torch.rand(6), expected)


def test_each_worker_has_a_random_stream_of_its_own() -> None:
    torch.manual_seed(4)
    found = simulate(drawn, 3)
    assert len({float(x) for row in found for x in row}) == 18, "no worker draws what another does"
    assert same(simulate(drawn, 3), found), "after the same seed"
    disturbed = simulate(lambda comm: drawn(comm, 100), 3)
    assert same([disturbed[0], disturbed[2]], [found[0], found[2]])
    assert not same(disturbed[1], found[1])
    assert same(simulate(drawn, 2), found[:2]), "a worker's numbers do not depend on how many there are"
    torch.manual_seed(5)
    assert not same(simulate(drawn, 3), found)


def test_workers_that_seed_themselves_draw_what_a_process_would() -> None:
    def train(comm: Comm) -> torch.Tensor:
        torch.manual_seed(10 + comm.rank)
        return drawn(comm)

    torch.manual_seed(12)
    assert same(simulate(train, 3)[2], torch.rand(6))


def test_dropout_differs_between_workers() -> None:
    def train(comm: Comm) -> torch.Tensor:
        return torch.nn.functional.dropout(torch.ones(64))

    masks = simulate(train, 4)
    assert all(not same(masks[a], masks[b]) for a in range(4) for b in range(a))


def test_the_callers_random_state_is_restored_even_after_a_failure() -> None:
    def train(comm: Comm) -> None:
        torch.manual_seed(99)
        comm.gather(torch.zeros(1))
        torch.rand(7)
        if comm.rank == 2:
            raise ValueError("no")
        comm.gather(torch.zeros(1))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="no"):
        simulate(train, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (lambda comm: comm.mean(torch.zeros(2)), "mean((2,), torch.float32)"),
        (lambda comm: comm.gather(torch.zeros(3)), "gather((3,), torch.float32)"),
        (lambda comm: comm.gather(torch.zeros(2, dtype=torch.float64)), "gather((2,), torch.float64)"),
        (lambda comm: comm.broadcast(torch.zeros(2), 1), "broadcast(1, (2,), torch.float32)"),
        (lambda comm: comm.permute(torch.zeros(2), [2, 0, 1]), "permute(2, 0, 1, (2,), torch.float32)"),
        (lambda comm: comm.split(0), "split()"),
    ],
)
def test_a_mismatch_names_both_ranks_and_calls(odd: Any, said: str) -> None:
    def train(comm: Comm) -> None:
        if comm.rank == 1:
            odd(comm)
        else:
            comm.gather(torch.zeros(2))

    with pytest.raises(CollectiveMismatch) as caught:
        simulate(train, 3)
    assert "rank 0 called gather((2,), torch.float32)" in str(caught.value)
    assert f"rank 1 called {said}" in str(caught.value)


@pytest.mark.parametrize("early", [0, 1, 2])
def test_a_rank_that_returns_early_is_named(early: int) -> None:
    def train(comm: Comm) -> None:
        if comm.rank != early:
            comm.gather(torch.zeros(2))

    with pytest.raises(CollectiveMismatch) as caught:
        simulate(train, 3)
    assert f"rank {early} has returned" in str(caught.value)
    for other in {0, 1, 2} - {early}:
        assert f"rank {other} called gather((2,), torch.float32)" in str(caught.value)


def test_groups_that_wait_for_each_other_are_named_instead_of_waiting() -> None:
    def train(comm: Comm) -> None:
        pair = comm.split(comm.rank // 2)
        (comm if comm.rank % 2 else pair).gather(torch.zeros(1))

    with pytest.raises(CollectiveMismatch, match=r"rank 0 called gather.*rank 3 called gather"):
        simulate(train, 4)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, CommError, StopIteration])
def test_an_exception_comes_out_as_it_is(kind: type[BaseException]) -> None:
    thrown = kind("mine")

    def train(comm: Comm) -> None:
        comm.gather(torch.zeros(1))
        if comm.rank == 1:
            raise thrown
        comm.gather(torch.zeros(1))

    with pytest.raises(kind) as caught:
        simulate(train, 3)
    assert caught.value is thrown
    assert any(entry.name == "train" for entry in caught.traceback)


def test_collectives_on_the_way_out_of_an_exception_do_not_hang() -> None:
    left: list[int] = []

    def train(comm: Comm) -> None:
        try:
            try:
                comm.gather(torch.zeros(1))
                if comm.rank == 1:
                    raise ValueError("inner")
                comm.mean(torch.zeros(4))
            finally:
                comm.broadcast(torch.zeros(2), 0)
        finally:
            left.append(comm.rank)
            comm.gather(torch.zeros(3))

    with pytest.raises((ValueError, CollectiveMismatch)):
        simulate(train, 3)
    assert sorted(left) == [0, 1, 2]


def test_threads_end_with_the_world() -> None:
    before = threading.active_count()
    simulate(lambda comm: comm.gather(torch.zeros(1)), 8)
    with pytest.raises(CollectiveMismatch):
        simulate(lambda comm: comm.rank or comm.gather(torch.zeros(1)), 8)
    assert threading.active_count() == before


def test_a_world_inside_a_worker_of_another() -> None:
    def train(comm: Comm) -> list[float]:
        inner = simulate(lambda c: float(c.mean(torch.tensor([float(c.rank)]))[0]), 3)
        return comm.gather(torch.tensor(inner)).view(-1).tolist()

    assert simulate(train, 2) == [[1.0] * 6] * 2


def test_a_world_inside_a_worker_takes_nothing_from_its_random_stream() -> None:
    def train(comm: Comm) -> tuple[torch.Tensor, list[torch.Tensor]]:
        inner = simulate(drawn, 2) if comm.rank == 1 else []
        return drawn(comm), inner

    found = simulate(train, 2)
    assert same([outer for outer, _ in found], simulate(drawn, 2))
    assert len({float(x) for row in (found[0][0], *found[1][1]) for x in row}) == 18


@pytest.mark.parametrize("within", [False, True])
def test_a_second_world_in_another_thread_is_refused(within: bool) -> None:
    """Whether the thread was started by a worker, which waits for it, or by somebody else."""
    with ThreadPoolExecutor(2) as pool:

        def train(comm: Comm) -> None:
            other = pool.submit(simulate, lambda comm: None, 2)
            other.result()

        with pytest.raises(UsageError, match="another thread of this process is in simulate; expected one at a"):
            simulate(train, 1) if within else pool.submit(simulate, train, 1).result()
        assert pool.submit(simulate, lambda comm: comm.rank, 2).result() == [0, 1], "none is left behind"
        assert simulate(lambda comm: comm.rank, 2) == [0, 1]


def interrupted_by(kind: type[BaseException], train: Any, workers: int = 2) -> None:
    """Simulate; the signal that `train` sends is to end it by an exception, with no thread left behind."""

    def handler(number: int, frame: object) -> None:
        raise kind

    previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, state = threading.active_count(), torch.get_rng_state()
    try:
        with pytest.raises(kind):
            simulate(train, workers)
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), state)
    assert simulate(lambda comm: comm.rank, 2) == [0, 1], "the next one works"


def forever() -> None:
    """Compute, without a call into the library."""
    while True:
        torch.zeros(1)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, KeyboardInterrupt), (signal.SIGTERM, SystemExit)],
)
def test_an_interrupt_ends_a_worker_in_its_own_code(number: int, kind: type[BaseException]) -> None:
    left: list[int] = []

    def train(comm: Comm) -> None:
        try:
            comm.gather(torch.zeros(1))
            if comm.rank == 1:
                os.kill(os.getpid(), number)
                forever()
        finally:
            left.append(comm.rank)

    interrupted_by(kind, train)
    assert sorted(left) == [0, 1]


def test_an_interrupt_ends_local_steps() -> None:
    steps: list[int] = []

    def train(comm: Comm) -> None:
        sync = Synchronizer(torch.nn.Linear(2, 1), LocalSGD(when=Every(10**9)), comm)
        while True:
            sync.step(0.1)
            steps.append(comm.rank)
            if len(steps) == 3:
                os.kill(os.getpid(), signal.SIGINT)

    interrupted_by(KeyboardInterrupt, train)


def test_an_interrupt_ends_a_world_inside_a_worker_of_another() -> None:
    def inner(comm: Comm) -> None:
        comm.gather(torch.zeros(1))
        if comm.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
            forever()

    interrupted_by(KeyboardInterrupt, lambda comm: simulate(inner, 2))


def test_an_interrupt_is_not_swallowed_by_a_worker_that_catches_exceptions() -> None:
    def train(comm: Comm) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            with contextlib.suppress(Exception):
                forever()

    interrupted_by(KeyboardInterrupt, train)


CELL = """
import torch
from swarmstep import Every, LocalSGD, Synchronizer, simulate

class Net(torch.nn.Linear):
    pass

def train(comm):
    model = Net(4, 1)
    sync = Synchronizer(model, LocalSGD(when=Every(2)), comm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(5):
        if stop_at == step and comm.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        loss = torch.nn.functional.dropout(model(torch.randn(8, 4))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        sync.step(loss)
    sync.finish()
    return model.weight.detach()

found = simulate(train, 3)
"""


def test_a_notebook_cell_is_run_again_after_it_was_interrupted() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        run_again()
    finally:
        signal.signal(signal.SIGINT, before)


def run_again() -> None:
    cells: dict[str, Any] = {"os": os, "signal": signal, "stop_at": None}
    exec(CELL, cells)
    first = cells["found"]
    cells["stop_at"] = 3
    with pytest.raises(KeyboardInterrupt):
        exec(CELL, cells)
    cells["stop_at"] = None
    exec(CELL, cells)
    assert same(cells["found"], first)


@pytest.mark.parametrize("workers", [17, pytest.param(64, marks=pytest.mark.slow)])
def test_many_workers(workers: int) -> None:
    found = simulate(lambda comm: run(comm, PSOPS(when=Every(2)), 2), workers)
    assert same(found[0].weights[-1], found[-1].weights[-1])
    assert found[0].rounds == [2]


@pytest.mark.parametrize("workers", [0, -1])
def test_a_world_needs_a_worker(workers: int) -> None:
    with pytest.raises(UsageError, match=f"expected workers >= 1, found {workers}"):
        simulate(lambda comm: None, workers)


def test_the_clock_is_the_workers_own() -> None:
    """One worker computes, the other waits; only the one that computes sees time pass."""

    def train(comm: Comm) -> float:
        started = comm.clock()
        if comm.rank == 0:
            while comm.clock() - started < 0.05:
                pass
        comm.gather(torch.zeros(1))
        return comm.clock() - started

    busy, idle = simulate(train, 2)
    assert busy >= 0.05
    assert idle < busy
