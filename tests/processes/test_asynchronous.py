"""Asynchronous methods in real processes: for the same order of events the weights of the simulator."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from launched import Launched
from pool import Pool
from swarmstep import Comm
from swarmstep.asynchronous import (
    SERVER,
    AsGrad,
    Displacement,
    Event,
    Flat,
    Function,
    LayUp,
    Message,
    Method,
    Outer,
    Quorum,
    Simulator,
    replay,
)
from swarmstep.asynchronous.processes import GlooMailbox, replay_node, run_server, run_worker
from swarmstep.errors import PeerLost, UsageError
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


@contextlib.contextmanager
def group(limit: float) -> Iterator[Any]:
    """A group of its own, since what goes wrong closes its connections."""
    made = dist.new_group(backend="gloo", timeout=timedelta(seconds=limit))
    try:
        yield made
    finally:
        dist.destroy_process_group(made)


def in_order(comm: Comm, kind: str, order: list[Event]) -> dict[str, Any]:
    method, x = made(kind)
    with group(60) as ranks, GlooMailbox(method, ranks) as box:
        return vars(replay_node(method, x, box, order))


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize("kind", ["pure", "random", "shuffled", "layup", "quorum"])
def test_the_order_of_the_simulator_gives_its_states_bit_for_bit(pool: Pool, kind: str) -> None:
    method, x = made(kind)
    lost = 0.2 if kind == "layup" else 0.0
    seconds = [1.0, 1.0, 3.0, 2.0][: method.workers]
    simulator = Simulator(method, x, seconds, jitter=0.3, latency=0.1, lost=lost, seed=4)
    simulator.run(events=150)
    assert (lost > 0) == any(event.kind == "lost" for event in simulator.order)
    states = pool.run(in_order, kind, simulator.order)
    for node, state in zip(method.nodes, states, strict=True):
        assert equal(state, vars(simulator.states[node])), node


def freely(comm: Comm, kind: str, results: int) -> Any:
    method, x = made(kind)
    with group(60) as ranks, GlooMailbox(method, ranks) as box:
        if box.node == SERVER:
            served = run_server(method, x, box, results)
            return vars(served.state), served.order
        return vars(run_worker(method, x, box)), box.node


@pytest.mark.parametrize("kind", ["pure", "random", "quorum"])
def test_what_happens_freely_is_replayed_bit_for_bit(pool: Pool, kind: str) -> None:
    *workers, (state, order) = pool.run(freely, kind, 40)
    method, x = made(kind)
    nodes = replay(method, x, order)
    assert equal(state, vars(nodes.states[SERVER]))
    assert sum(state["received"]) == 40
    for worker, node in workers:
        assert worker["done"] >= state["received"][node]


def held_up(comm: Comm) -> Any:
    """Let a worker deliver only after the first round has closed, at worker 0's second job."""

    def job(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        if (worker, number) == (0, 1):
            dist.send(torch.zeros(1), 2)
        if (worker, number) == (2, 0):
            dist.recv(torch.zeros(1), 0)
        return x - worker

    method = Quorum(3, Function(job), Outer(0.5), 2, 0.01)
    with group(60) as ranks, GlooMailbox(method, ranks) as box:
        if box.node == SERVER:
            served = run_server(method, torch.zeros(3), box, 20)
            return vars(served.state), served.order
        return run_worker(method, torch.zeros(3), box).done


def test_a_round_closes_without_who_is_held_up(pool: Pool) -> None:
    *_, (state, order) = pool.run(held_up)
    assert [event.kind for event in order if event.node == SERVER][:3] == ["message", "message", "timer"]
    method = Quorum(3, Function(lambda x, worker, number: x - worker), Outer(0.5), 2, 0.01)
    assert equal(state, vars(replay(method, torch.zeros(3), order).states[SERVER]))


def polled(comm: Comm) -> list[float]:
    """Let all workers post to the server, which asks until it has all."""
    method, _ = made("pure")
    found: list[Message] = []
    with group(60) as ranks, GlooMailbox(method, ranks) as box:
        if box.node != SERVER:
            box.post(SERVER, Message(box.node, (0.5, box.node), torch.full((box.node,), 7.0, dtype=torch.float64)))
        while box.node == SERVER and len(found) < 3:
            if (message := box.poll()) is not None:
                found.append(message)
        assert box.poll() is None
    for message in found:
        assert equal(message.x, torch.full((message.source,), 7.0, dtype=torch.float64))
        assert message.numbers == (0.5, message.source)
    return sorted(message.source for message in found)


def test_polling(pool: Pool) -> None:
    assert pool.run(polled) == [[], [], [], [0, 1, 2]]


def test_without_a_group() -> None:
    with pytest.raises(
        UsageError, match=r"GlooMailbox: no process group; call torch.distributed.init_process_group"
    ):
        GlooMailbox(made("pure")[0])


def other_order(comm: Comm, order: list[Event]) -> str:
    """Return what is raised at the worker of which too much is expected."""
    method, x = made("pure")
    with group(60) as ranks:
        try:
            with GlooMailbox(method, ranks) as box:
                replay_node(method, x, box, order)
        except (UsageError, PeerLost) as error:
            return type(error).__name__ + ": " + str(error)
    return ""


def test_an_order_of_another_run_is_refused(pool: Pool) -> None:
    found = pool.run(other_order, [Event(0.0, "step", 1, 1)])
    assert re.match(r"UsageError: Event.*: node 1 has nothing to compute; the order is of another run", found[1])
    found = pool.run(other_order, [Event(0.0, "message", 1, -1), Event(0.0, "message", 1, -1)])
    assert re.match(r"UsageError: Event.*: nothing more comes from the server; the order is of another", found[1])


def dies(end: Any, who: int, wait: int) -> None:
    """Kill one node after some jobs; all others say what is raised."""
    torch.distributed.init_process_group("gloo")

    def job(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        if worker == who and number == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return x - worker

    method = AsGrad(3, Function(job), Outer(0.1), wait=wait)
    try:
        with GlooMailbox(method) as box:
            if box.node == SERVER:
                run_server(method, torch.zeros(9), box, 10 if who == SERVER else 10**6)
                os.kill(os.getpid(), signal.SIGKILL)
            run_worker(method, torch.zeros(9), box)
    except PeerLost as error:
        end.send(str(error))


@pytest.mark.parametrize(("who", "wait"), [(1, 1), (1, 3), (SERVER, 1)])
def test_who_dies_is_named_at_once(who: int, wait: int) -> None:
    with Launched(dies, 4, who, wait) as world:
        said = [world.hears(rank) for rank in range(4) if rank != (3 if who == SERVER else who)]
    name = "the server" if who == SERVER else "worker 1"
    assert any(f"receiving from {name} (limit 60 s): " in text or f"sending to {name} (" in text for text in said)


def silent(comm: Comm) -> str:
    """Return what is raised where worker 1 sends nothing."""
    method, x = made("pure")
    with group(60) as ranks:
        try:
            with GlooMailbox(method, ranks, limit=0.5) as box:
                if box.node == 1:
                    comm.gather(torch.zeros(1))  # all others have given up
                    return ""
                run_server(method, x, box, 1) if box.node == SERVER else None
                box.receive(1) if box.node == SERVER else box.receive(SERVER)
                return "went on"
        except PeerLost as error:
            return str(error)
        finally:
            if comm.rank != 1:
                comm.gather(torch.zeros(1))


def test_who_is_silent_is_named(pool: Pool) -> None:
    found = pool.run(silent)
    assert re.match(r"the server: (waiting for any node|sending to worker \d) \(limit 0.5 s\): ", found[3])
    assert found[3].endswith("start all nodes again, with a longer limit if one was only slow")


def refused(comm: Comm) -> list[str]:
    found = []
    method, _ = made("pure")
    for call in (
        lambda: GlooMailbox(AsGrad(7, method.work, Outer(1.0))),  # type: ignore[attr-defined]
        lambda: GlooMailbox(method, limit=0),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        found.append(str(caught.value))
    with group(60) as ranks, GlooMailbox(method, ranks) as box:
        with pytest.raises(UsageError) as caught:
            box.post(SERVER, Message(box.node, (0,) * 9, torch.zeros(1)))
        found.append(str(caught.value))
    return found


def test_wrong_arguments(pool: Pool) -> None:
    size, limit, numbers = pool.run(refused)[0]
    assert "expected a gloo group of 8 ranks" in size
    assert "4 ranks" in size
    assert "limit 0" in limit
    assert numbers == "message to -1: expected up to 8 numbers, float32 or float64; found 9 numbers, torch.float32"
