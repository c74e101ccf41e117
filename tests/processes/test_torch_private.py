"""What is used of torch beyond its public interface: each function does what it says, with this torch."""

from __future__ import annotations

import os
import sys
import time
import uuid
from typing import Any

import pytest
import torch
import torch.distributed as dist

from forking import CONTEXT
from pool import Pool
from swarmstep import DistComm
from swarmstep.comm import process_groups, torch_private
from swarmstep.comm.pair import Pair

SOON = 30.0  # seconds; far beyond what any wait here should take


def timed_out(comm: DistComm) -> bool:
    """Wait for a peer that does not come, with a limit set after the group was formed."""
    group = comm.split(0)._control
    torch_private.set_timeout(group, 0.2)
    began = time.monotonic()
    if comm.rank == 0:
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.zeros(1), group=group)
    comm.gather(torch.zeros(1))
    return time.monotonic() - began < SOON


def test_set_timeout_limits_the_operations_that_follow(pool: Pool) -> None:
    assert pool.run(timed_out, workers=2) == [True, True]


def counted(end: Any, port: int) -> None:
    """Make a group and destroy it, in a process that nobody shares: torch gives its name to another one again."""
    process_groups.form(process_groups.connect("127.0.0.1", port, SOON), "alone", (0, 1), SOON, SOON)
    before, known = torch_private.groups_made(), torch_private.all_groups()
    group = dist.new_group([0], backend="gloo")
    with_it = torch_private.groups_made() - before, group in torch_private.all_groups()
    dist.destroy_process_group(group)
    end.send([with_it, torch_private.groups_made() - before, torch_private.all_groups() == known])
    process_groups.dissolve()


def test_groups_are_listed_and_counted() -> None:
    store, port = process_groups.serve_store()
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=counted, args=(there, port))
    process.start()
    there.close()
    assert here.recv() == [(1, True), 0, True]
    process.join(SOON)
    assert process.exitcode == 0
    del store


def meets(end: Any, port: int, rank: int) -> None:
    """Meet the other in a default group, one of the two after an attempt that nobody else joined."""
    store = process_groups.connect("127.0.0.1", port, SOON)
    if rank == 0:
        with pytest.raises(RuntimeError):
            process_groups.form(store, "alone", (0, 2), 0.3, SOON)
        process_groups.dissolve()
    process_groups.form(store, "both", (rank, 2), SOON, SOON)
    total = torch.ones(1)
    dist.all_reduce(total)
    end.send(float(total))
    process_groups.dissolve()


def test_default_groups_meet_when_the_count_is_reset() -> None:
    store, port = process_groups.serve_store()
    pipes = [CONTEXT.Pipe(duplex=False) for _ in range(2)]
    processes = [CONTEXT.Process(target=meets, args=(pipes[r][1], port, r)) for r in range(2)]
    for process in processes:
        process.start()
    for _, there in pipes:
        there.close()
    assert [here.recv() for here, _ in pipes] == [2.0, 2.0]
    for process in processes:
        process.join(SOON)
        assert process.exitcode == 0
    del store


def test_leak_adds_a_reference_that_nobody_drops() -> None:
    thing = object()
    before = sys.getrefcount(thing)
    torch_private.leak(thing)
    assert sys.getrefcount(thing) == before + 1


def test_the_stores_are_those_of_torch() -> None:
    assert torch_private.TCPStore is dist.TCPStore
    assert torch_private.PrefixStore is dist.PrefixStore


def test_which_buffers_are_not_persistent() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("cache", torch.zeros(1), persistent=False)
    assert torch_private.non_persistent_buffers(module) == {"cache"}


def paired(comm: DistComm, name: str) -> list[str]:
    """Two groups of two between the same processes: the end of one is no matter of the other's."""
    store = process_groups.connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), SOON)
    one, other = (Pair(store, name + kind, comm.rank, "127.0.0.1", SOON) for kind in ("one", "other"))
    known = torch_private.all_groups()
    said = []
    for pair in (one, other, one):
        data = torch.full((3,), float(comm.rank))
        try:
            if comm.rank == 0:
                pair.send(data, 0, SOON)
                pair.receive(data, 1, SOON)
            else:
                pair.receive(data, 0, SOON)
                pair.send(data + 7, 1, SOON)
            said.append(str(data.tolist()))
        except RuntimeError:
            said.append("lost")
        if pair is other:
            comm.gather(torch.zeros(1))
            if comm.rank == 1:
                one.close()
            comm.gather(torch.zeros(1))
    assert torch_private.all_groups() == known
    return said


def test_pairs_stand_and_fall_alone(pool: Pool) -> None:
    found = pool.run(paired, uuid.uuid4().hex, workers=2)
    assert found == [["[7.0, 7.0, 7.0]"] * 2 + ["lost"], ["[0.0, 0.0, 0.0]"] * 2 + ["lost"]]
