"""The event queue: deterministic, resumed bit for bit, replayed from its record, and right about time."""

from __future__ import annotations

import io
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.asynchronous import (
    PDASGD,
    SERVER,
    AsGrad,
    Direction,
    Displacement,
    Disturbance,
    Event,
    Flat,
    Function,
    LayUp,
    Outer,
    Quorum,
    Simulator,
    Speeds,
    replay,
)
from swarmstep.asynchronous.asgrad import ASSIGNMENTS
from swarmstep.asynchronous.merging import RULES
from swarmstep.errors import CheckpointError, UsageError
from whole_runs import fast_ones

from .quadratics import FOUR, SECONDS, ZERO, asgrad, loss, network, server


def made(kind: str) -> Simulator:
    model = network()
    work = Displacement(model, loss, 2, lambda ps: torch.optim.AdamW(ps, lr=0.01))
    lost, direction = 0.0, Direction(0.8, 0.5, 0.5, 1.0, 0.5, tuple(Flat(model).layout.sizes))
    if kind == "layup":
        method, lost = LayUp(4, model, loss, lr=0.1, seed=2), 0.1
    elif kind == "pd-asgd":
        method = PDASGD(3, model, loss, lr=0.1)
    elif kind == "quorum":
        method = Quorum(4, work, Outer(0.7, 0.5), 2, 0.5, "staleness", 3, direction, (1.0, 1.0, 2.0, 3.0))
    else:
        method = AsGrad(4, work, Outer(0.7, 0.5, 4), kind, "staleness", 2, 3, direction=direction)
    speeds = Speeds(SECONDS, 0.4, (Disturbance(1, 5.0, 20.0, 3.0), Disturbance(2, 10.0, 12.0, math.inf)), seed=11)
    return Simulator(method, Flat(model).read(), speeds, latency=0.25, lost=lost, seed=11)


KINDS = ["pure", "random", "shuffled", "layup", "pd-asgd", "quorum"]


@pytest.mark.parametrize("kind", fast_ones(["pure", "layup", "quorum"], KINDS))
def test_the_same_again_resumed_and_replayed_bit_for_bit(kind: str) -> None:
    whole, again = made(kind), made(kind)
    whole.run(events=160)
    again.run(events=70)
    file = io.BytesIO()
    torch.save(again.state_dict(), file)
    file.seek(0)
    resumed = made(kind)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(resumed.result(), again.result())
    again.run(events=90)
    resumed.run(events=90)
    replayed = replay(made(kind)._method, Flat(network()).read(), whole.order)
    assert whole.order == again.order == resumed.order
    assert whole.now == again.now == resumed.now
    found = [whole.result(), again.result(), resumed.result(), whole._method.result(replayed.states)]
    assert all(torch.equal(found[0], other) for other in found)
    timers = {"timer"} if kind == "quorum" else set[str]()
    assert {event.kind for event in whole.order} >= {"step", "message", *timers}


@given(
    workers=st.integers(1, 5),
    data=st.data(),
    assign=st.sampled_from(ASSIGNMENTS),
    rule=st.sampled_from(RULES),
    every=st.integers(1, 3),
    jitter=st.sampled_from([0.0, 0.5]),
    latency=st.sampled_from([0.0, 0.7]),
    cut=st.integers(0, 80),
)
def test_any_run_is_resumed_at_any_event(
    workers: int,
    data: st.DataObject,
    assign: str,
    rule: str,
    every: int,
    jitter: float,
    latency: float,
    cut: int,
) -> None:
    seconds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=workers, max_size=workers))
    wait, ignore = data.draw(st.integers(1, workers)), data.draw(st.integers(0, 3))
    method = AsGrad(workers, FOUR, Outer(0.3, 0.5, every), assign, rule, wait, ignore)
    whole, before, after = (
        Simulator(method, ZERO, seconds, jitter=jitter, latency=latency, seed=cut) for _ in range(3)
    )
    whole.run(events=80)
    before.run(events=cut)
    after.load_state_dict(before.state_dict())
    after.run(events=80 - cut)
    assert whole.order == after.order
    for node, state in whole.states.items():
        assert str(state) == str(after.states[node])
    assert torch.equal(whole.result(), replay(method, ZERO, whole.order).states[SERVER].x)


@given(
    workers=st.integers(1, 5),
    data=st.data(),
    grace=st.sampled_from([0.0, 0.4, 3.0]),
    latency=st.sampled_from([0.0, 0.7]),
    cut=st.integers(0, 80),
)
def test_a_quorum_is_resumed_at_any_event(
    workers: int, data: st.DataObject, grace: float, latency: float, cut: int
) -> None:
    """Timers that run, and those that are no longer needed, go on after a resume."""
    seconds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 1.7]), min_size=workers, max_size=workers))
    method = Quorum(workers, FOUR, Outer(0.3, 0.5), data.draw(st.integers(1, workers)), grace)
    whole, before, after = (
        Simulator(method, ZERO, seconds, jitter=0.5, latency=latency, seed=cut) for _ in range(3)
    )
    whole.run(events=80)
    before.run(events=cut)
    after.load_state_dict(before.state_dict())
    after.run(events=80 - cut)
    assert whole.order == after.order
    assert {node: str(state) for node, state in whole.states.items()} == {
        n: str(s) for n, s in after.states.items()
    }
    assert str(server(whole)) == str(replay(method, ZERO, whole.order).states[SERVER])


def test_a_saved_state_is_a_copy() -> None:
    simulator = made("pure")
    simulator.run(events=20)
    saved = simulator.state_dict()
    before = simulator.result()
    simulator.run(events=40)
    simulator.load_state_dict(saved)
    simulator.run(events=40)
    simulator.load_state_dict(saved)
    assert torch.equal(simulator.result(), before)


def test_a_state_of_another_run_is_refused_by_name() -> None:
    saved = Simulator(asgrad(), ZERO, SECONDS).state_dict()
    with pytest.raises(CheckpointError, match=r"method.outer.lr: expected 0.2 \(this run\), found 0.1"):
        Simulator(asgrad(0.2), ZERO, SECONDS).load_state_dict(saved)
    with pytest.raises(CheckpointError, match=r"speeds.jitter: expected 0.5"):
        Simulator(asgrad(), ZERO, SECONDS, jitter=0.5).load_state_dict(saved)
    del saved["heap"]
    with pytest.raises(CheckpointError, match="heap: missing"):
        Simulator(asgrad(), ZERO, SECONDS).load_state_dict(saved)


def test_nobody_waits() -> None:
    """In 12 s each worker does as many jobs as fit; with rounds all do as many as the slowest."""
    simulator = Simulator(asgrad(), ZERO, SECONDS)
    simulator.run(until=12.0)
    assert [simulator.states[w].done for w in range(4)] == [12, 6, 4, 3]
    assert server(simulator).version == 25
    simulator = Simulator(asgrad(wait=4), ZERO, SECONDS)
    simulator.run(until=12.0)
    assert [simulator.states[w].done for w in range(4)] == [3] * 4


def test_time_of_steps_and_messages() -> None:
    work = Function(lambda x, worker, number: x)
    work.steps = 10
    simulator = Simulator(AsGrad(1, work, Outer(0.1)), ZERO, [0.5], latency=1.0)
    simulator.run(events=3)
    assert [event.time for event in simulator.order] == [1.0, 6.0, 7.0]
    simulator.run(until=100.0)
    assert simulator.now == 100.0


def test_jitter_stays_within_its_range() -> None:
    simulator = Simulator(asgrad(workers=1), ZERO, [2.0], jitter=0.25)
    simulator.run(events=900)
    times = [event.time for event in simulator.order if event.kind == "step"]
    durations = [b - a for a, b in pairwise(times)]
    assert 1.5 <= min(durations) < 1.55
    assert 2.45 < max(durations) <= 2.5
    other = Simulator(asgrad(workers=1), ZERO, [2.0], jitter=0.25, seed=1)
    other.run(events=2)
    assert other.now != simulator.order[1].time


def test_64_workers() -> None:
    seconds = [1 + w / 64 for w in range(64)]
    simulator = Simulator(asgrad(0.01, workers=64), ZERO, seconds)
    simulator.run(until=20.0)
    assert server(simulator).version == sum(server(simulator).entered) > 64 * 10
    simulator = Simulator(LayUp(64, network(), loss, lr=0.05), Flat(network()).read(), seconds)
    simulator.run(until=2.0)
    assert simulator.result().isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seconds": [1.0]}, r"seconds: expected 4 numbers above 0, found \[1.0\]"),
        ({"seconds": [1.0, 1.0, 1.0, 0.0]}, r"expected seconds above 0.*found \(1.0, 1.0, 1.0, 0.0\)"),
        ({"jitter": 1.0}, "jitter 0 to below 1; found.*, jitter 1.0"),
        ({"latency": -1.0}, "latency -1.0"),
        ({"lost": 0.1}, "lost: asgrad waits for every message; expected 0, found 0.1"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Simulator(asgrad(), ZERO, **{"seconds": SECONDS, **arguments})


def test_a_run_needs_an_end() -> None:
    with pytest.raises(UsageError, match="expected until or events"):
        Simulator(asgrad(), ZERO, SECONDS).run()
    simulator = Simulator(asgrad(), ZERO, SECONDS)
    simulator._heap.clear()
    with pytest.raises(UsageError, match="virtual time 0 s: no worker computes and no message is under way"):
        simulator.run(events=1)


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Event(0, "step", 0, 0), "node 0 has nothing to compute"),
        (Event(0, "message", 0, 1), "no message from 1 is under way"),
        (Event(0, "timer", SERVER, SERVER), "no timer of node -1 is running"),
        (Event(0, "message", 7, 1), r"expected one of step, .*joined at one of the nodes \(0, 1, 2, 3, -1\)"),
        (Event(0, "dance", 0, 0), "expected one of step, message, lost, timer, left, joined"),
    ],
)
def test_an_order_of_another_run_is_refused(event: Event, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replay(asgrad(), ZERO, [event])
