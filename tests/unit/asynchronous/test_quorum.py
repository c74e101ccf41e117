"""Quorum by what is known of it: DiLoCo with all, who waits for whom, and that nothing is lost or counts twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep import Comm, DiLoCo, Every, Synchronizer, simulate
from swarmstep.asynchronous import (
    SERVER,
    Displacement,
    Disturbance,
    Flat,
    Function,
    Message,
    Outer,
    Quorum,
    Simulator,
    Speeds,
)
from swarmstep.asynchronous.merging import RULES
from swarmstep.asynchronous.nodes import Box
from swarmstep.errors import CollectiveMismatch, UsageError
from swarmstep.seeding import mix, seed_torch

from .quadratics import FOUR, SECONDS, ZERO, loss, network, server

STEPS = 3


def quorum(lr: float = 1.0, workers: int = 4, **options: Any) -> Quorum:
    return Quorum(workers, FOUR, Outer(lr), **{"quorum": workers, **options})


def rounds_of(workers: int, outer: Outer, rounds: int) -> torch.Tensor:
    """Return DiLoCo's model after some rounds of the Synchronizer."""

    def train(comm: Comm) -> torch.Tensor:
        model = network().float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        sync = Synchronizer(model, DiLoCo(outer.lr, outer.momentum, when=Every(STEPS)), comm)
        for step in range(rounds * STEPS):
            optimizer.zero_grad()
            seed_torch(mix(0, comm.rank, step), torch.device("cpu"))
            value = single(model, comm.rank, step)
            value.backward()
            optimizer.step()
            sync.step(value)
        sync.finish()
        return Flat(model).read()

    return simulate(train, workers)[0]


def single(model: torch.nn.Module, worker: int, step: int) -> torch.Tensor:
    return loss(lambda inputs: model(inputs.float()), worker, step)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("workers", "outer", "exact"),
    [(3, Outer(1.0), True), (4, Outer(0.5, 0.5), True), (3, Outer(0.7, 0.9), False)],
)
def test_a_quorum_of_all_is_diloco(workers: int, outer: Outer, exact: bool) -> None:
    """Bit for bit where the products with lr and momentum are exact; else DiLoCo rounds some of them once less."""
    model = network().float()
    work = Displacement(model, single, STEPS, lambda ps: torch.optim.AdamW(ps, lr=0.01))
    method = Quorum(workers, work, outer, quorum=workers, grace=5.0)
    simulator = Simulator(method, Flat(network().float()).read(), SECONDS[:workers], jitter=0.5)
    simulator.run(events=3 * workers * 5)
    assert server(simulator).version == 5
    assert "timer" not in {event.kind for event in simulator.order}
    expected = rounds_of(workers, outer, 5)
    assert simulator.result().dtype == expected.dtype == torch.float32
    if exact:
        assert torch.equal(simulator.result(), expected)
    assert torch.allclose(simulator.result(), expected, rtol=0, atol=1e-6)


def closes(simulator: Simulator, until: float) -> list[float]:
    """Return the times at which rounds close."""
    found, version = [], server(simulator).version
    while simulator.now < until:
        simulator.run(events=1)
        if server(simulator).version > version:
            found.append(simulator.now)
            version += 1
    return found


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"quorum": 4}, [4.0, 8.0]),  # all, at once
        ({"quorum": 2}, [2.0, 4.0, 6.0, 8.0, 10.0]),
        ({"quorum": 2, "grace": 0.5}, [2.5, 5.0, 7.5, 10.0]),
        ({"quorum": 2, "grace": 1.5}, [3.5, 7.0, 10.5]),
        ({"quorum": 2, "grace": 2.5}, [4.0, 8.0]),  # all
        ({"quorum": 1, "grace": 50.0}, [4.0, 8.0]),
    ],
)
def test_when_rounds_close(options: dict[str, Any], expected: list[float]) -> None:
    assert closes(Simulator(quorum(**options), ZERO, SECONDS), 10.6) == expected


def test_against_a_program_of_its_own() -> None:
    """Workers of 1, 1 and 2.5 s, K = 2, grace 0: the third is always late, waits for nobody, and counts less."""
    lr, points, handed, finish, taus = 0.5, [8.0], 0, 2.5, []
    for now in range(1, 11):
        x, late = points[-1], []
        while finish <= now:
            taus.append(len(points) - 1 - handed)
            late.append(x - (points[handed] - 2) / (1 + taus[-1]))
            handed, finish = len(points) - 1, finish + 2.5
        y = [x - (x - 0), x - (x - 1), *late]
        points.append(x - lr * (x - sum(y) / len(y)))
    simulator = Simulator(quorum(lr, 3, quorum=2, rule="staleness"), ZERO + 8, (1.0, 1.0, 2.5))
    found = [8.0]
    while len(found) < len(points):
        simulator.run(events=1)
        if server(simulator).version == len(found):
            found.append(float(simulator.result()))
    assert found == pytest.approx(points, abs=1e-12)
    assert taus == [2, 2, 3, 2]
    assert (simulator.now, server(simulator).entered) == (10, [10, 10, 4])


def test_who_is_late_does_not_wait_for_more_than_the_grace() -> None:
    """Three in time, one three times as slow: without grace it never idles, the others never for it."""
    slow = 3.1
    for grace in (0.0, 0.25):
        simulator = Simulator(quorum(0.1, quorum=3, grace=grace), ZERO, (1.0, 1.0, 1.0, slow))
        simulator.run(until=62.0)
        *fast, late = [simulator.states[w].done for w in range(4)]
        assert 62 / (1 + grace) - 1 < min(fast) <= max(fast) < 62 / (1 + grace) + 2
        assert 62 - slow <= late * (slow + grace)
        assert len(server(simulator).points) <= 2
    simulator = Simulator(quorum(0.1, quorum=3), ZERO, (1.0, 1.0, 1.0, slow))
    simulator.run(until=20.5 * slow)
    assert simulator.states[3].done == 20


@pytest.mark.parametrize(("grace", "dropped"), [(0.0, 30), (0.15, 3), (0.3, 1), (0.6, 0)])
def test_who_fell_behind_once_catches_up_by_the_grace_in_each_round(grace: float, dropped: int) -> None:
    """One worker stands still for half a second, once; all need 1 s. What is late is dropped, and so counted."""
    speeds = Speeds((1.0,) * 4, disturbances=(Disturbance(3, 0.2, 0.7, float("inf")),))
    simulator = Simulator(quorum(0.1, quorum=3, grace=grace, ignore=1), ZERO, speeds)
    simulator.run(until=30.9)
    assert len(server(simulator).dropped) == dropped


@pytest.mark.parametrize("rule", RULES)
def test_among_all_no_rule_scales_anything(rule: str) -> None:
    found = []
    for each in ("constant", rule):
        simulator = Simulator(quorum(0.3, rule=each), ZERO + 7, SECONDS)
        simulator.run(events=60)
        found.append(simulator.result())
    assert torch.equal(*found)


def test_whose_minimum_it_finds() -> None:
    """Half of the workers close a round: the others count more seldom, unless they count more for it."""

    def limit(rule: str) -> float:
        simulator = Simulator(quorum(0.03, quorum=2, rule=rule), ZERO, SECONDS)
        simulator.run(until=700.0)
        return float(simulator.result())

    assert limit("staleness") < limit("constant") < limit("rescaled") < 1.5
    assert abs(limit("rescaled") - 1.5) < 0.3 * abs(limit("constant") - 1.5)


def test_weights() -> None:
    simulator = Simulator(quorum(weights=(1.0, 2.0, 3.0, 4.0)), ZERO, SECONDS)
    simulator.run(events=12)
    assert float(simulator.result()) == pytest.approx((0 + 2 + 6 + 12) / 10)


@given(
    workers=st.integers(1, 5),
    data=st.data(),
    ignore=st.integers(0, 3),
    grace=st.sampled_from([0.0, 0.3, 4.0]),
    latency=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 100),
)
def test_each_displacement_enters_once_or_is_reported(
    workers: int, data: st.DataObject, ignore: int, grace: float, latency: float, seed: int
) -> None:
    """Each job has a coordinate of its own, and its own share of a round: 1 / how many are in it."""
    jobs = 40
    seconds = data.draw(st.lists(st.floats(0.1, 5), min_size=workers, max_size=workers))
    least = data.draw(st.integers(1, workers))

    def mark(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        d = torch.zeros_like(x)
        d[worker * jobs + number] = 1.0
        return d

    method = Quorum(workers, Function(mark), Outer(1.0), quorum=least, grace=grace, ignore=ignore)
    start = torch.zeros(workers * jobs, dtype=torch.float64)
    simulator = Simulator(method, start, seconds, jitter=0.9, latency=latency, seed=seed)
    simulator.run(events=jobs)
    state, x = server(simulator), simulator.result().view(workers, jobs)
    pending = Counter(worker for worker, _, _ in state.waiting)
    steps = Counter(event.node for event in simulator.order if event.kind == "step")
    sent = Counter(message.source for to, message in simulator.under_way if to == SERVER)
    dropped = Counter(worker for worker, _, _ in state.dropped)
    assert all(x[worker, number] == 0 for worker, number, _ in state.dropped)
    for worker in range(workers):
        assert int((x[worker] != 0).sum()) == state.entered[worker] - pending[worker]
        received = state.entered[worker] + dropped[worker]
        assert state.given[worker] == received + len(state.under_way[worker])
        assert steps[worker] == received + sent[worker]
    entered = sum(state.entered) - sum(pending.values())
    shares = sorted((-x[x != 0]).tolist())
    assert sum(shares) == pytest.approx(state.version)  # in each round the shares add up to 1
    assert len(shares) == entered >= state.version * least
    assert set(state.points) <= {*state.holds, state.version}


def test_a_result_that_comes_twice_is_refused() -> None:
    method = quorum()
    state = method.init(SERVER, ZERO)
    state.under_way[1] = [2]
    with pytest.raises(CollectiveMismatch, match=r"worker 1 delivered its job 1, expected the first of \[2\]"):
        method.on_message(state, Message(1, (0, 1), ZERO), Box(lambda to, message: None))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quorum": 5}, "quorum 5"),
        ({"grace": -1.0}, "grace -1.0"),
        ({"grace": float("inf")}, "grace inf"),
        ({"rule": "none"}, "rule: expected one of constant"),
        ({"weights": (1.0,)}, r"weights: expected 4 numbers above 0, or none; found \(1.0,\)"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        quorum(**options)
