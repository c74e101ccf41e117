"""Real processes: who is lost is named, every wait ends, and nobody hangs on the way out.

Tests that kill or stop start processes of their own; the others use the pool.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from forking import CONTEXT
from helpers import Trainer, same
from launched import SOON, Launched
from pool import Pool
from swarmstep import PSOPS, Comm, DistComm, Every, simulate
from swarmstep.comm import rendezvous
from swarmstep.comm.process_groups import LOOPBACK, serve_store
from swarmstep.errors import CommError, UsageError


def train_until_lost(end: Any, silence: float) -> None:
    """Train for ever; say when the first round is over, and what was raised and left in the end.

    Rank 0 leaves the group in good order, the others just end.
    """
    comm = DistComm.from_env("gloo", exact=True, silence=silence, patience=600)
    trainer = Trainer(PSOPS(when=Every(2)), comm)
    for _ in range(2):
        trainer.step()
    end.send("trains")
    weights = trainer.weights()
    try:
        while True:
            loss = trainer.local_step()
            weights = trainer.weights()
            trainer.sync.step(loss)
    except CommError as error:
        end.send((type(error).__name__, str(error), same(trainer.weights(), weights)))
    if comm.rank == 0:
        comm.close()


def test_a_killed_peer_is_named_by_all_others_whose_weights_stay() -> None:
    with Launched(train_until_lost, 3, 30.0) as world:
        assert [world.hears(rank) for rank in range(3)] == ["trains"] * 3
        world.signals(1, signal.SIGKILL)
        for rank in (0, 2):
            kind, said, kept = world.hears(rank)
            assert kind == "PeerLost"
            assert re.match(rf"step \d+: rank {rank}: lost rank 1 while in \w+ \(.+\); see that rank's own", said)
            assert kept
        assert [world.ends(rank) for rank in (0, 2)] == [0, 0]


def test_a_stopped_peer_is_named_after_silence_and_learns_it_later() -> None:
    spawn = multiprocessing.get_context("spawn")  # its processes end as programs do, the forked ones at once
    with Launched(train_until_lost, 3, 3.0, how=spawn) as world:
        assert [world.hears(rank) for rank in range(3)] == ["trains"] * 3
        world.signals(2, signal.SIGSTOP)
        for rank in (0, 1):
            kind, said, kept = world.hears(rank)
            assert kind == "PeerLost"
            assert f"rank {rank}: no heartbeat for 3 s from rank 2 while in" in said
            assert kept
        # The operation under way would hold them for as long as patience.
        assert [world.ends(rank) for rank in (0, 1)] == [0, 0]
        world.signals(2, signal.SIGCONT)
        kind, said, kept = world.hears(2)
        assert kind == "PeerLost"
        assert "rank 2: the other ranks gave up on this one" in said
        assert world.ends(2) == 0


def wait_for_slow(end: Any, patience: float) -> None:
    """Rank 1 beats but does not come; the others wait."""
    comm = DistComm.from_env("gloo", silence=1.0, patience=patience)
    if comm.rank == 1:
        signal.pause()
    started = time.monotonic()
    try:
        comm.gather(torch.zeros(1))
    except CommError as error:
        end.send((type(error).__name__, str(error), time.monotonic() - started))
    comm.close()


def test_a_peer_that_is_alive_but_slow_is_waited_for_up_to_patience() -> None:
    with Launched(wait_for_slow, 2, 3.0) as world:
        kind, said, waited = world.hears(0)
        assert kind == "CommError"
        assert re.match(
            r"rank 0: waited \d+ s in gather for peers that are alive; to wait longer, raise pat", said
        )
        assert waited >= 3.0  # not the 1 s after which a silent peer is lost
        assert world.ends(0) == 0


def hold_the_lock(end: Any) -> None:
    """Rank 1 holds its interpreter lock for twice as long as a silent peer may be silent."""
    comm = DistComm.from_env("gloo", silence=2.0, patience=600.0)
    if comm.rank == 1:
        ctypes.PyDLL(None).sleep(4)
    end.send(comm.gather(torch.tensor([comm.rank])).flatten().tolist())
    comm.close()


def test_a_peer_that_holds_its_interpreter_lock_is_waited_for() -> None:
    with Launched(hold_the_lock, 2) as world:
        assert [world.hears(rank) for rank in (0, 1)] == [[0, 1], [0, 1]]


def meet_by_name(end: Any) -> None:
    """As torchrun has it: the address is this machine's name."""
    os.environ |= {"MASTER_ADDR": socket.gethostname(), "LOCAL_WORLD_SIZE": os.environ["WORLD_SIZE"]}
    os.environ.pop("GLOO_SOCKET_IFNAME", None)
    comm = DistComm.from_env("gloo")
    end.send((os.environ["GLOO_SOCKET_IFNAME"], comm.gather(torch.tensor([comm.rank])).flatten().tolist()))
    comm.close()


def test_one_machine_with_a_name_needs_no_secret() -> None:
    with Launched(meet_by_name, 2) as world:
        assert [world.hears(rank) for rank in (0, 1)] == [(LOOPBACK, [0, 1])] * 2


@pytest.mark.parametrize(
    ("host", "here", "alone"),
    [("127.0.1.1", 2, True), ("127.0.1.1", 1, False), ("192.0.2.7", 2, False), ("no.such.host.invalid", 2, False)],
)
def test_whether_all_ranks_are_on_this_machine(
    host: str, here: int, alone: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"MASTER_ADDR": host, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": str(here)}.items():
        monkeypatch.setenv(name, value)
    assert rendezvous._all_are_here() == alone


def wait_without_store(end: Any) -> None:
    comm = DistComm.from_env("gloo", silence=3, patience=600)
    end.send("here")
    if comm.rank == 1:
        signal.pause()
    try:
        comm.gather(torch.zeros(1))
    except CommError as error:
        end.send((type(error).__name__, str(error)))
    comm.close()


def _serve(end: Any) -> None:
    store, port = serve_store()
    end.send(port)
    end.recv()
    del store


@contextlib.contextmanager
def store_elsewhere() -> Iterator[tuple[Any, int]]:
    """A store in a process that can be stopped or killed."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_serve, args=(there,))
    process.start()
    try:
        assert here.poll(SOON)
        yield process, here.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "lost the store while in"), (signal.SIGSTOP, "no answer for 3 s")]
)
def test_a_store_that_is_gone_or_stopped_is_named_and_no_peer(number: int, said: str) -> None:
    with store_elsewhere() as (process, port), Launched(wait_without_store, 2, port=port) as world:
        assert [world.hears(rank) for rank in range(2)] == ["here"] * 2
        os.kill(process.pid, number)
        kind, text = world.hears(0)
        assert kind == "PeerLost"
        assert text.startswith("rank 0: lost the store while in gather (")
        assert said in text


def join_nobody(end: Any) -> None:
    with pytest.raises(CommError) as caught:
        DistComm.from_env("gloo", patience=1)
    end.send(str(caught.value))


def test_a_group_that_nobody_serves_is_named() -> None:
    with Launched(join_nobody, 2, port=1) as world:
        assert world.hears(1).startswith("rank 1: the group at 127.0.0.1:1 could not be formed: ")


def join_another(comm: Comm) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", str(comm.rank + 1))
        with pytest.raises(UsageError) as caught:
            DistComm.from_env("gloo")
    return str(caught.value)


def test_a_group_that_the_environment_does_not_describe_is_refused(pool: Pool) -> None:
    for rank, said in enumerate(pool.run(join_another)):
        assert f"exists already has rank {rank} of 4 here" in said
        assert f"RANK={rank + 1} and WORLD_SIZE=4; use DistComm(group)" in said


def leave_what_exists(comm: Comm) -> bool:
    DistComm.from_env("gloo").close()
    return dist.is_initialized()


def test_a_group_that_exists_is_left_as_it_is(pool: Pool) -> None:
    assert all(pool.run(leave_what_exists))


def join_what_exists(end: Any, secrets: tuple[str, str]) -> None:
    dist.init_process_group("gloo")  # as Ray Train does
    os.environ["SWARMSTEP_SECRET"] = secrets[dist.get_rank()]
    try:
        comm = DistComm.from_env(silence=2.0)
        end.send(comm.gather(torch.tensor([comm.rank])).flatten().tolist())
        if comm.rank == 1:
            signal.pause()
        comm.gather(torch.zeros(1))
    except CommError as error:
        end.send(f"{type(error).__name__}: {error}")


def test_a_group_that_exists_is_watched() -> None:
    with Launched(join_what_exists, 2, ("a secret of both",) * 2) as world:
        assert [world.hears(rank) for rank in (0, 1)] == [[0, 1], [0, 1]]
        world.signals(1, signal.SIGSTOP)
        assert world.hears(0).startswith("PeerLost: rank 0: no heartbeat for 2 s from rank 1 ")


def test_a_group_that_exists_proves_the_secret() -> None:
    with Launched(join_what_exists, 2, ("a secret of rank 0", "a secret of rank 1")) as world:
        assert all("did not prove to know the secret" in world.hears(rank) for rank in (0, 1))


def on_two_groups(comm: Comm) -> list[float]:
    """Interleave collectives of the world and of a second group of the user's own."""
    group = dist.new_group([1, 3])
    members = comm.rank in (1, 3)
    second = DistComm(group, exact=True) if members else comm
    found = []
    for n in range(3):
        found.append(float(comm.mean(torch.tensor([1.0 * comm.rank + n]))[0]))
        if members:
            found.append(float(second.mean(torch.tensor([1.0 * comm.rank + n]))[0]))
            assert second.gather(torch.tensor(second.rank)).tolist() == [0, 1]
            assert float(second.broadcast(torch.tensor(comm.rank), 1)) == 3
    return found


def test_a_second_group_beside_the_world(pool: Pool) -> None:
    world, pair = [1.5, 2.5, 3.5], [1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
    assert pool.run(on_two_groups) == [world, pair, world, pair]


def beats(comm: Comm) -> list[list[int]]:
    return [comm.gather(torch.tensor(comm.rank)).tolist()]


def test_processes_answer_like_simulation(pool: Pool) -> None:
    assert pool.run(beats) == simulate(beats, 4)
