"""AsGrad by what is known of it: where it converges to, when it is SGD, and what enters how often."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swarmstep.asynchronous import (
    SERVER,
    AsGrad,
    Displacement,
    Event,
    Flat,
    Function,
    Gradient,
    Message,
    Outer,
    Quorum,
    Simulator,
    Work,
)
from swarmstep.asynchronous.asgrad import ASSIGNMENTS
from swarmstep.asynchronous.jobs import Ledger, blank
from swarmstep.asynchronous.merging import RULES, scale
from swarmstep.errors import CollectiveMismatch, NotFinite, UsageError

from .quadratics import SECONDS, ZERO, asgrad, loss, network, server


def limit(method: AsGrad, seconds: tuple[float, ...] = SECONDS, events: int = 18_000) -> float:
    """Return the mean of x over the second half of a run."""
    simulator = Simulator(method, ZERO, seconds)
    simulator.run(events=events // 2)
    found = []
    for _ in range(events // 60):
        simulator.run(events=30)
        found.append(float(simulator.result()))
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, sum(i / s for i, s in enumerate(SECONDS)) / sum(1 / s for s in SECONDS)),
        pytest.param({"assign": "random"}, 1.5, marks=pytest.mark.slow),
        ({"assign": "shuffled"}, 1.5),
        ({"rule": "rescaled"}, 1.5),
        pytest.param({"assign": "shuffled", "rule": "rescaled", "wait": 2}, 1.5, marks=pytest.mark.slow),
    ],
)
def test_whose_minimum_it_finds(options: dict[str, Any], expected: float) -> None:
    """Fast workers draw the pure method to theirs, in proportion to their speed: 0.92 in place of 1.5."""
    assert limit(asgrad(0.002 * options.get("wait", 1), **options)) == pytest.approx(expected, abs=0.02)


def test_shuffled_fluctuates_less_than_random() -> None:
    def fluctuation(assign: str) -> float:
        simulator = Simulator(asgrad(0.01, assign=assign), ZERO, SECONDS)
        simulator.run(events=3000)
        found = []
        for _ in range(300):
            simulator.run(events=12)
            found.append(float(simulator.result()))
        return float(np.std(found))

    assert fluctuation("shuffled") < 0.6 * fluctuation("random")


def test_displacements_have_the_same_bias() -> None:
    def three_steps(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        return (x - worker) * (1 - 0.9**3)

    method = AsGrad(4, Function(three_steps), Outer(0.01))
    assert limit(method) == pytest.approx(0.92, abs=0.02)


@pytest.mark.parametrize("seconds", [(1.0, 1.0, 1.0, 1.0), SECONDS])
def test_waiting_for_all_is_mini_batch_sgd_bit_for_bit(seconds: tuple[float, ...]) -> None:
    simulator = Simulator(asgrad(0.3, wait=4), ZERO + 7, seconds, jitter=0.5)
    x = np.float64(7.0)
    for _ in range(50):
        simulator.run(events=12)
        g = (((x - 0.0) + (x - 1.0)) + (x - 2.0)) + (x - 3.0)
        x = x - 0.3 * (g / 4)
        assert float(simulator.result()) == x


def test_one_worker_is_plain_sgd_bit_for_bit() -> None:
    model = network()
    start = Flat(model).read()
    simulator = Simulator(AsGrad(1, Gradient(model, loss), Outer(0.1)), start, [2.0])
    simulator.run(events=3 * 20)
    assert simulator.now == 40

    other = network()
    work = Gradient(other, loss)
    x = start.clone()
    for step in range(20):
        x = x - 0.1 * work(x, 0, step, step, {})
    assert torch.equal(simulator.result(), x)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9)])
def test_one_worker_with_displacements_is_its_inner_optimizer(optimizer) -> None:
    """Server lr 1: the inner optimizer goes on over all jobs, its state included."""
    model, other = network().eval(), network().eval()  # no dropout: it would draw other numbers
    start = Flat(model).read()
    simulator = Simulator(AsGrad(1, Displacement(model, loss, 5, optimizer), Outer(1.0)), start, [1.0])
    simulator.run(events=3 * 4)
    assert simulator.now == 20
    plain = optimizer(other.parameters())
    for step in range(20):
        plain.zero_grad()
        loss(other, 0, step).backward()
        plain.step()
    assert torch.allclose(simulator.result(), Flat(other).read(), rtol=0, atol=1e-13)


def test_waiting_with_displacements_is_a_round_of_the_mean() -> None:
    model = network()
    start, work = Flat(model).read(), Displacement(model, loss, 3, lambda ps: torch.optim.SGD(ps, lr=0.1))
    simulator = Simulator(AsGrad(3, work, Outer(1.0), wait=3), start, [1, 1, 3], seed=3)
    simulator.run(events=9 * 2)
    assert simulator.now == 2 * 3 * 3
    x = start
    for number in range(2):
        x = x - (work(x, 0, number, 0, {}) + work(x, 1, number, 0, {}) + work(x, 2, number, 0, {})) / 3
    assert torch.equal(simulator.result(), x)


def test_ringleader_converges_to_the_common_minimum_itself() -> None:
    """All count the same in each step, so that there is no fluctuation around 1.5 either."""
    simulator = Simulator(asgrad(0.05, rule="ringleader"), ZERO, SECONDS, jitter=0.3)
    simulator.run(events=6000)
    assert float(simulator.result()) == pytest.approx(1.5, abs=1e-6)
    assert sum(simulator.computed) > 0.99 * 4 * simulator.now - 10  # nobody waits


def test_ringleader_with_one_worker_is_sgd_bit_for_bit() -> None:
    simulator, x = Simulator(asgrad(0.3, workers=1, rule="ringleader"), ZERO + 7, [1.0]), np.float64(7.0)
    for _ in range(20):
        simulator.run(events=3)
        x = x - 0.3 * x
        assert float(simulator.result()) == x


@given(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_ringleader_by_its_equations(workers: int, arrivals: list[int]) -> None:
    """Any order of results, against the rounds written out; no result is used more than 2 W - 2 late."""
    method, box = asgrad(0.1, workers=workers, rule="ringleader"), Posts()
    state = method.init(SERVER, ZERO)
    method.start(state, box)
    x, version, results, moved = 0.0, 0, {i: list[tuple[float, int]]() for i in range(workers)}, set[int]()
    later = {i: list[tuple[float, int]]() for i in range(workers)}
    for worker in (arrival % workers for arrival in arrivals):
        numbers, at = box.last[worker]
        d = math.sin(float(at) + worker)
        method.on_message(state, Message(worker, numbers[:2], ZERO + d), box)
        if len(moved) == workers:
            results, later, moved = later, {i: [] for i in range(workers)}, set()
        (later if worker in moved else results)[worker].append((d, int(numbers[0])))
        if worker not in moved and all(results.values()):
            assert max(version - v for of in results.values() for _, v in of) <= 2 * workers - 2
            x -= 0.1 * np.mean([np.mean([d for d, _ in of]) for of in results.values()])
            version += 1
            moved.add(worker)
        assert (state.version, float(state.x)) == (version, pytest.approx(x, abs=1e-12))


class Posts:
    """A mailbox that keeps the last job of each worker: its numbers and point."""

    def __init__(self) -> None:
        self.last: dict[int, tuple[tuple[float, ...], Tensor]] = {}

    def post(self, to: int, message: Message) -> None:
        self.last[to] = message.numbers, message.x

    def poll(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("options", [{"assign": "random"}, {"wait": 2}, {"ignore": 3}])
def test_ringleader_goes_with_plain_assignment_only(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="rule ringleader: expected assign pure, wait 1, ignore 0"):
        asgrad(rule="ringleader", **options)


@pytest.mark.parametrize("tau", [0, 1, 2, 4, 8])
def test_the_delay_law(tau: int) -> None:
    """x_{t+1} = x_t - eta x_{t-tau}, which is stable if and only if eta < 2 sin(pi / (2 (2 tau + 1)))."""
    bound = 2 * math.sin(math.pi / (2 * (2 * tau + 1)))

    def amplitude(lr: float) -> tuple[float, float]:
        method = AsGrad(tau + 1, Function(lambda x, worker, number: x), Outer(lr))
        simulator = Simulator(method, ZERO + 1, [1.0] * (tau + 1))
        course = [1.0]
        while len(course) < 200 * (tau + 1):
            simulator.run(events=1)
            if simulator.order[-1].node == SERVER:
                course.append(float(simulator.result()))
        for t in range(len(course) - 1):
            assert course[t + 1] == course[t] - lr * course[max(0, t - tau)]
        part = len(course) // 5
        return max(map(abs, course[:part])), max(map(abs, course[-part:]))

    first, last = amplitude(0.98 * bound)
    assert last < 0.5 * first
    first, last = amplitude(1.02 * bound)
    assert last > 2 * first


def test_ringmaster_ignores_delays_of_r_and_more() -> None:
    """Against a program of its own: workers as lists, time by hand."""
    R, lr, seconds = 3, 0.1, (1.0, 1.5, 7.0)
    simulator = Simulator(asgrad(lr, workers=3, ignore=R), ZERO, seconds)
    simulator.run(until=100.0)
    x, version, dropped = 0.0, 0, []
    jobs = {w: (seconds[w], 0, 0.0, 0) for w in range(3)}  # finish, version, point, number
    order = [0, 1, 2]
    while min(jobs.values())[0] <= 100:
        worker = min(order, key=lambda w: jobs[w][0])  # of equals the one that began first
        finish, handed, point, number = jobs[worker]
        if version - handed >= R:
            dropped.append((worker, number, "stale"))
        else:
            x, version = x - lr * (point - worker), version + 1
        jobs[worker] = (finish + seconds[worker], version, x, number + 1)
        order.remove(worker)
        order.append(worker)
    assert server(simulator).dropped == dropped != []
    assert (float(simulator.result()), server(simulator).version) == (x, version)
    assert {worker for worker, _, _ in dropped} == {2}


def test_scales() -> None:
    ledger = Ledger(**{**blank(SERVER, ZERO, 4), "entered": [1, 5, 2, 0]})
    found = {rule: [scale(rule, ledger, 1, tau) for tau in (0, 3, 8)] for rule in RULES}
    assert found == {
        "constant": [1, 1, 1],
        "delay-adaptive": [1, 1, 0.5],
        "staleness": [1, 0.25, 1 / 9],
        "rescaled": [8 / 20] * 3,
    }


def test_a_worker_with_two_jobs_does_both() -> None:
    """And each gradient is of the data of the worker that got the job, not of the one that delivered."""
    seen: Counter[tuple[int, int]] = Counter()
    most = 0

    def note(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        seen[worker, number] += 1
        return x - worker

    simulator = Simulator(AsGrad(3, Function(note), Outer(0.1), assign="random", seed=1), ZERO, [1, 1, 5])
    for _ in range(600):
        simulator.run(events=1)
        most = max(most, *(len(simulator.states[w].jobs) for w in range(3)))
    assert most >= 2
    assert sum(len(simulator.states[w].jobs) for w in range(3)) + len(simulator.under_way) == 3
    assert min(simulator.states[w].done for w in range(3)) > 10
    assert set(seen.values()) == {1}


def test_delayed_nesterov() -> None:
    plain = torch.optim.SGD([parameter := torch.nn.Parameter(ZERO.clone())], lr=0.7, momentum=0.9, nesterov=True)
    outer, x, memory = Outer(0.7, 0.9), ZERO, {}
    for t in range(1, 9):
        g = torch.tensor([math.sin(t)], dtype=torch.float64)
        parameter.grad = g.clone()
        plain.step()
        x = outer.step(x, g, memory, t)
        assert torch.allclose(x, parameter.detach(), rtol=0, atol=1e-15)

    outer, x, memory, m, total = Outer(0.5, 0.8, every=3), ZERO, {}, 0.0, 0.0
    expected = 0.0
    for t in range(1, 13):
        g = math.cos(t)
        total += g
        expected -= 0.5 * g / 3
        if t % 3 == 0:
            m, total = 0.8 * m + total / 3, 0.0
            expected -= 0.5 * 0.8 * m
        x = outer.step(x, torch.tensor([g], dtype=torch.float64), memory, t)
        assert float(x) == pytest.approx(expected, abs=1e-14)


@given(
    workers=st.integers(1, 5),
    data=st.data(),
    assign=st.sampled_from(ASSIGNMENTS),
    ignore=st.integers(0, 4),
    latency=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 100),
)
def test_each_displacement_enters_once_or_is_reported(
    workers: int, data: st.DataObject, assign: str, ignore: int, latency: float, seed: int
) -> None:
    """Each job has a coordinate of its own, which is -1 / wait once it has entered."""
    jobs = 60
    wait = data.draw(st.integers(1, workers))
    seconds = data.draw(st.lists(st.floats(0.1, 5), min_size=workers, max_size=workers))

    def mark(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        d = torch.zeros_like(x)
        d[worker * jobs + number] = wait
        return d

    method = AsGrad(workers, Function(mark), Outer(1.0), assign, "constant", wait, ignore, seed)
    simulator = Simulator(
        method, torch.zeros(workers * jobs, dtype=torch.float64), seconds, jitter=0.9, latency=latency, seed=seed
    )
    simulator.run(events=jobs * 3 // 2)
    state, x = server(simulator), simulator.result().view(workers, jobs)
    steps = Counter(event.node for event in simulator.order if event.kind == "step")
    dropped = Counter(worker for worker, _, _ in state.dropped)
    pending = Counter(worker for worker, _, _ in state.waiting)
    assert len(set(state.dropped)) == len(state.dropped)
    assert all(x[worker, number] == 0 for worker, number, _ in state.dropped)
    assert set(x.unique().tolist()) <= {0.0, -1.0}
    sent = Counter(message.source for to, message in simulator.under_way if to == SERVER)
    for worker in range(workers):
        assert -int(x[worker].sum()) == state.entered[worker] - pending[worker]
        received = state.entered[worker] + dropped[worker]
        assert state.given[worker] == received + len(state.under_way[worker])
        assert steps[worker] == received + sent[worker] == simulator.states[worker].done


def test_a_result_that_comes_twice_is_refused() -> None:
    simulator = Simulator(asgrad(), ZERO, SECONDS)
    simulator.run(events=5)
    (message,) = [message for to, message in simulator.under_way if to == SERVER]
    nodes = simulator._nodes
    nodes.under_way[0, SERVER].append(message)
    nodes.perform(Event(0.0, "message", SERVER, 0))
    with pytest.raises(
        CollectiveMismatch, match=r"server, step 1: worker 0 delivered its job 0, expected the first of \[1\]"
    ):
        nodes.perform(Event(0.0, "message", SERVER, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"assign": "fair"}, r"assign: expected one of pure, random, shuffled, found 'fair'"),
        ({"rule": "none"}, r"rule: expected one of constant, delay-adaptive, staleness, rescaled"),
        ({"wait": 5}, r"wait 1 to workers.*found workers 4, wait 5"),
        ({"ignore": -1}, r"ignore -1"),
        ({"workers": 0}, r"workers 0"),
    ],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        asgrad(**options)  # type: ignore[arg-type]


def test_wrong_work_and_outer() -> None:
    with pytest.raises(UsageError, match="steps: expected at least 1, found 0"):
        Displacement(network(), loss, 0, torch.optim.AdamW)
    with pytest.raises(UsageError, match=r"every of at least 1, .*found Outer\(lr=1.0, momentum=0.0, every=0, "):
        Outer(1.0, every=0)
    with pytest.raises(UsageError, match=r"buffer '1.running_mean': asynchronous methods do not average"):
        Gradient(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)), loss)


class Told(Work):
    """D = x; remembers what each job was told of how far the run was."""

    def __init__(self) -> None:
        self.results: list[int] = []

    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        self.results.append(results)
        return x


def test_results_that_are_dropped_count_as_work_done() -> None:
    """A schedule that follows the jobs ends with the run, whatever the server ignores."""
    work = Told()
    simulator = Simulator(AsGrad(4, work, Outer(0.1), ignore=1), ZERO, (1.0,) * 4)
    simulator.run(events=3 * 400)
    state = server(simulator)
    assert len(state.dropped) > 200
    assert state.came == sum(state.entered) + len(state.dropped) == 400
    assert sorted(work.results) == [0] * 4 + [*range(1, 397)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("kind", [AsGrad, Quorum])
def test_a_result_that_is_not_finite_changes_nothing_and_is_named(kind: type[AsGrad | Quorum], bad: float) -> None:
    def d(x: Tensor, worker: int, number: int) -> Tensor:
        return x * (bad if (worker, number) == (2, 5) else 0.1)

    method = Quorum(4, Function(d), Outer(1.0), 3) if kind is Quorum else AsGrad(4, Function(d), Outer(0.5))
    simulator = Simulator(method, torch.ones(3, dtype=torch.float64), (1.0, 1.1, 1.2, 1.3))
    with pytest.raises(NotFinite, match="the result of job 5 of worker 2 is not finite"):
        simulator.run(until=50)
    assert 0 < float(simulator.result().min()) < 1
