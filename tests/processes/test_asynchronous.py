"""Asynchronous methods in real processes: for the same order of events the weights of the simulator."""

from __future__ import annotations

import os
import re
import uuid
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from pool import Pool
from swarmstep import Comm
from swarmstep.asynchronous import (
    SERVER,
    AsGrad,
    Change,
    Displacement,
    Event,
    Flat,
    Function,
    LayUp,
    Links,
    Message,
    Method,
    Outer,
    Quorum,
    Simulator,
    replay,
    replay_node,
    run_peer,
    run_server,
    run_worker,
)
from swarmstep.asynchronous.server import _Server
from swarmstep.errors import CheckpointError, CommError, PeerLost, UsageError
from swarmstep.seeding import generator


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Dropout(0.2), torch.nn.Tanh(), torch.nn.Linear(8, 1)
    )


def loss(model: torch.nn.Module, worker: int, step: int) -> torch.Tensor:
    inputs = torch.randn(16, 4, generator=generator("inputs", worker, step))
    return (model(inputs) - inputs.sum(1, keepdim=True).sin()).square().mean()


def made(kind: str) -> tuple[Method[Any], torch.Tensor]:
    model = network()
    if kind == "layup":
        return LayUp(4, model, loss, lr=0.1, seed=2), Flat(model).read()
    job = Displacement(model, loss, 2, lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9))
    if kind == "quorum":
        return Quorum(3, job, Outer(0.7, 0.5), 2, 0.002, "staleness", 3), Flat(model).read()
    return AsGrad(3, job, Outer(0.7, 0.5, 3), kind, "staleness", 2, 3), Flat(model).read()


def links(comm: Comm, method: Method[Any], run: str, **options: Any) -> Links:
    """The links of the node of this rank, at the pool's store."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Links(method, method.nodes[comm.rank], address, run=run, **options)


def named() -> str:
    """A name that no other run has."""
    return uuid.uuid4().hex


def in_order(comm: Comm, run: str, kind: str, order: list[Event]) -> dict[str, Any]:
    method, x = made(kind)
    with links(comm, method, run) as box:
        return vars(replay_node(method, x, box, order))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize(
    "kind", ["pure", "layup", "quorum", *(pytest.param(k, marks=pytest.mark.slow) for k in ("random", "shuffled"))]
)
def test_the_order_of_the_simulator_gives_its_states_bit_for_bit(pool: Pool, kind: str) -> None:
    method, x = made(kind)
    lost = 0.2 if kind == "layup" else 0.0
    seconds = [1.0, 1.0, 3.0, 2.0][: method.workers]
    simulator = Simulator(method, x, seconds, jitter=0.3, latency=0.1, lost=lost, seed=4)
    simulator.run(events=150)
    assert (lost > 0) == any(event.kind == "lost" for event in simulator.order)
    states = pool.run(in_order, named(), kind, simulator.order)
    for node, state in zip(method.nodes, states, strict=True):
        assert equal(state, vars(simulator.states[node])), node


def freely(comm: Comm, run: str, kind: str, results: int) -> Any:
    method, x = made(kind)
    with links(comm, method, run) as box:
        if box.node == SERVER:
            served = run_server(method, x, box, results)
            return vars(served.state), served.order
        return vars(run_worker(method, x, box)), box.node


@pytest.mark.parametrize("kind", ["pure", "random", "quorum"])
def test_what_happens_freely_is_replayed_bit_for_bit(pool: Pool, kind: str) -> None:
    *workers, (state, order) = pool.run(freely, named(), kind, 40)
    method, x = made(kind)
    nodes = replay(method, x, order)
    assert equal(state, vars(nodes.states[SERVER]))
    assert state["here"] == [True] * 3
    assert sum(state["entered"]) + len(state["dropped"]) == 40
    assert {reason for _, _, reason in state["dropped"]} <= {"stale"}
    for worker, node in workers:
        assert worker["done"] >= state["given"][node] - len(state["under_way"][node])


def held_up(comm: Comm, run: str) -> Any:
    """Let a worker deliver only after the first round has closed, at worker 0's second job."""

    def job(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        if (worker, number) == (0, 1):
            dist.send(torch.zeros(1), 2)
        if (worker, number) == (2, 0):
            dist.recv(torch.zeros(1), 0)
        return x - worker

    method = Quorum(3, Function(job), Outer(0.5), 2, 0.01)
    with links(comm, method, run) as box:
        if box.node == SERVER:
            served = run_server(method, torch.zeros(3), box, 20)
            return vars(served.state), served.order
        return run_worker(method, torch.zeros(3), box).done


def test_a_round_closes_without_who_is_held_up(pool: Pool) -> None:
    *_, (state, order) = pool.run(held_up, named())
    assert [event.kind for event in order if event.node == SERVER][:3] == ["message", "message", "timer"]
    method = Quorum(3, Function(lambda x, worker, number: x - worker), Outer(0.5), 2, 0.01)
    assert equal(state, vars(replay(method, torch.zeros(3), order).states[SERVER]))


def polled(comm: Comm, run: str) -> list[int]:
    """Let all workers post to the server, again with each new connection, until it has found something of all."""
    method, _ = made("pure")
    found: dict[int, Message] = {}
    with links(comm, method, run) as box:
        while box.node == SERVER and len(found) < 3:
            message = box.poll() or box.take(0.05)
            if isinstance(message, Message):
                found[message.source] = message
        if box.node == SERVER:
            box.mark("found")
        while not box.marked("found"):
            change = box.take(0.05)
            if isinstance(change, Change) and change.kind == "joined":
                x = torch.full((box.node * 100_000,), 7.0, dtype=torch.float64)
                box.post(SERVER, Message(box.node, (0.5, box.node), x))
    for message in found.values():
        assert equal(message.x, torch.full((message.source * 100_000,), 7.0, dtype=torch.float64))
        assert message.numbers == (0.5, message.source)
    return sorted(found)


def test_polling(pool: Pool) -> None:
    assert pool.run(polled, named()) == [[], [], [], [0, 1, 2]]


def other_order(comm: Comm, run: str, order: list[Event]) -> str:
    """Return what is raised at the worker of which too much is expected."""
    method, x = made("pure")
    try:
        with links(comm, method, run, patience=20.0) as box:  # the others, for node 1, which is soon gone
            replay_node(method, x, box, order)
    except (UsageError, PeerLost) as error:
        return type(error).__name__ + ": " + str(error)
    return ""


def test_an_order_of_another_run_is_refused(pool: Pool) -> None:
    found = pool.run(other_order, named(), [Event(0.0, "step", 1, 1)])
    assert re.match(r"UsageError: Event.*: node 1 has nothing to compute; the order is of another run", found[1])
    found = pool.run(other_order, named(), [Event(0.0, "message", 1, -1), Event(0.0, "message", 1, -1)])
    assert re.match(r"UsageError: Event.*: nothing more comes from the server; the order is of another", found[1])


def alone(comm: Comm, run: str, folder: str) -> list[str]:
    """Return what nodes say that nobody else comes to, and those that are replaced."""
    method, x = made("pure")
    layup, y = made("layup")
    said = []

    def raises(method: Method[Any], node: int, call: Any, run: str) -> None:
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        with pytest.raises(CommError) as caught, Links(method, node, address, run=run, patience=0.3) as box:
            call(box)
        said.append(str(caught.value))

    raises(method, SERVER, lambda box: run_server(method, x, box, 1), run)
    raises(method, 1, lambda box: run_worker(method, x, box), run)

    def replaced(box: Links) -> None:
        box.store.add(box.key("entries", 1), 1)  # as another process does
        run_worker(method, x, box)

    raises(method, 1, replaced, run)

    def late(box: Links) -> None:
        box.mark("begun")
        run_peer(layup, y, box, 10)

    def too_late(box: Links) -> None:
        box.mark("over")
        late(box)

    raises(layup, 2, late, run + "layup")
    raises(layup, 2, too_late, run + "over")
    return said


def test_who_stays_alone_says_so(pool: Pool, tmp_path: Path) -> None:
    ((server, worker, replaced, late, over),) = pool.run(alone, named(), str(tmp_path), workers=1)
    assert server == "the server: no worker came within 0.3 s; start the workers"
    assert worker.startswith("worker 1: the server was not there for 0.3 s; start it again, from its checkpoint")
    assert replaced.startswith("worker 1: another process has taken the place of this one")
    assert late.startswith("worker 2: came when the others had begun, and none gave it a model for 0.3 s")
    assert over == "worker 2: came when the others had taken all steps; nothing is left to do"


SECRET = b"correct horse battery staple"


def with_secrets(comm: Comm, run: str, wrong: bool) -> Any:
    """Be a node; worker 1 knows another secret if `wrong`."""
    method, x = made("pure")
    secret = SECRET + b"!" if wrong and comm.rank == 1 else SECRET
    patience = 1.0 if wrong and comm.rank == 1 else 20.0
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            with links(comm, method, run, secret=secret, patience=patience) as box:
                if box.node == SERVER:
                    while len(box.here) < 2:  # the others
                        box.take(1.0)
                    comm.gather(torch.zeros(1))
                    return box.here, {str(warning.message) for warning in warned}
                if wrong and box.node == 1:
                    with pytest.raises(PeerLost, match="the server was not there for 1 s"):
                        run_worker(method, x, box)
                comm.gather(torch.zeros(1))
        finally:
            comm.gather(torch.zeros(1))


def test_who_does_not_know_the_secret_gets_no_connection(pool: Pool) -> None:
    here, warned = pool.run(with_secrets, named(), True)[3]
    assert here == [0, 2]
    assert any("worker 1 did not prove to know the secret of this node; give all machines" in w for w in warned)
    here, warned = pool.run(with_secrets, named(), False)[3]
    assert len(here) >= 2
    assert not warned


def anew(comm: Comm, run: str) -> str:
    """Have a server that has no checkpoint after one that has handed out jobs; return what it says."""
    method, x = made("pure")
    with links(comm, method, run, patience=20.0) as box:
        if box.node == 0:
            box.take(20.0)
            box.post(SERVER, Message(0, (5,), torch.empty(0)))
        if box.node == SERVER:
            with pytest.raises(CheckpointError) as caught:
                run_server(method, x, box, 3)
        comm.gather(torch.zeros(1))
    return str(caught.value) if box.node == SERVER else ""


def test_a_server_does_not_begin_twice_without_a_checkpoint(pool: Pool) -> None:
    assert pool.run(anew, named())[3].startswith(
        "the server: worker 0 has had 5 jobs of an earlier server, and there is no checkpoint in None"
    )


def other_run(comm: Comm, run: str, folder: str) -> list[str]:
    """Return what a server says of a checkpoint of another run, and of one that is damaged."""
    method, x = made("pure")
    said = []
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with Links(method, SERVER, address, run=run, patience=0.3) as box:
        _Server(method, x, box, Path(folder)).save()
        other = AsGrad(3, method.work, Outer(0.5), "pure", "staleness", 2, 3)  # type: ignore[attr-defined]
        for case in (other, method):
            with pytest.raises(CheckpointError) as caught:
                run_server(case, x, box, 1, folder=Path(folder))
            said.append(str(caught.value))
            path = Path(folder) / "step-00000000" / "rank-00000.pt"
            path.write_bytes(path.read_bytes()[:-1])
    return said


def test_a_checkpoint_of_another_run_is_refused(pool: Pool, tmp_path: Path) -> None:
    ((other, damaged),) = pool.run(other_run, named(), str(tmp_path), workers=1)
    assert other.startswith("method.outer.every: expected 1 (this run), found 3 (the checkpoint)")
    assert "half-written, damaged or foreign" in damaged


def refused(comm: Comm, run: str) -> list[str]:
    found = []
    method, x = made("pure")
    host = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with Links(method, 0, host, run=run) as box:
        for call in (
            lambda: Links(method, 3, host),
            lambda: Links(method, 0, host, silence=0),
            lambda: Links(method, 0, ("192.0.2.1", 80)),
            lambda: Links.from_env(method),
            lambda: run_server(method, x, box, 1),
            lambda: run_peer(method, x, box, 1),
            lambda: box.post(SERVER, Message(box.node, (0,) * 9, torch.zeros(1))),
        ):
            with pytest.raises(UsageError) as caught:
                call()
            found.append(str(caught.value))
    return found


def test_wrong_arguments(pool: Pool) -> None:
    node, silence, address, environment, server, peer, numbers = pool.run(refused, named(), workers=1)[0]
    assert "expected one of the nodes (0, 1, 2, -1)" in node
    assert "found node 3, silence 10.0" in node
    assert "silence 0, " in silence
    assert "'192.0.2.1' is not a loopback address and there is no secret: set SWARMSTEP_SECRET_FILE" in address
    assert "swarmstep run --workers 4 PROGRAM.py" in environment
    assert "node -1" in server
    assert "asgrad has a server; call run_server and run_worker" in peer
    assert numbers == "message to -1: expected up to 8 numbers, float32 or float64; found 9 numbers, torch.float32"
