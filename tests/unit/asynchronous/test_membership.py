"""Workers that come and go, a server that goes back to a checkpoint: all is counted, and nobody waits in vain."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.asynchronous import (
    SERVER,
    AsGrad,
    Event,
    Flat,
    Function,
    LayUp,
    Message,
    Method,
    Nodes,
    Outer,
    Quorum,
    QuorumState,
    replay,
)
from swarmstep.asynchronous.asgrad import ASSIGNMENTS
from swarmstep.asynchronous.merging import RULES, scale
from swarmstep.asynchronous.nodes import JOINED, LEFT, MESSAGE, STEP, TIMER, Box
from swarmstep.errors import PeerLost, UsageError
from swarmstep.seeding import generator

from .quadratics import ZERO, asgrad, loss, network


class Run:
    """Nodes to which events happen, one after another; `here`: the workers that are there."""

    def __init__(self, method: AsGrad | Quorum) -> None:
        self.method, self.order = method, list[Event]()
        self.nodes = Nodes(method, ZERO)
        self.nodes.start()
        self.here = {*range(method.workers)}
        self.given = dict.fromkeys(self.here, 0)  # as each worker knows

    @property
    def server(self):
        return self.nodes.states[SERVER]

    def happens(self, kind: str, node: int, source: int) -> None:
        told = self.given[source] if kind == JOINED else 0
        self.order.append(Event(0.0, kind, node, source, told))
        self.nodes.perform(self.order[-1])
        if kind == JOINED:
            self.here.add(source)
        elif kind == LEFT:
            self.here -= {*self.given} if source == SERVER else {source}
        elif node != SERVER:
            self.given[node] = max(self.given[node], self.method.given(self.nodes.states[node]))

    def possible(self) -> list[tuple[str, int, int]]:
        """What the nodes that are there have to do."""
        found = [(MESSAGE, to, source) for (source, to), queue in self.nodes.under_way.items() if queue]
        found += [(TIMER, SERVER, SERVER)] * (self.method.timer(self.server) is not None)
        return found + [(STEP, w, w) for w in sorted(self.here) if self.method.ready(self.nodes.states[w])]

    def check(self) -> None:
        state, W = self.server, self.method.workers
        assert state.here == [worker in self.here for worker in range(W)]
        if isinstance(state, QuorumState):  # whoever is there has a job, or waits for the close
            assert [len(numbers) for numbers in state.under_way] == [
                h and w not in state.idle for w, h in enumerate(state.here)
            ]
            assert {*state.holds} <= state.points.keys()
        else:
            assert sum(map(len, state.under_way)) + len(state.free) + len(state.waiting) == W
        dropped = Counter((worker, number) for worker, number, _ in state.dropped)
        assert max(dropped.values(), default=1) == 1
        for worker in range(W):
            lost = [number for w, number, _ in state.dropped if w == worker]
            assert state.given[worker] == state.entered[worker] + len(lost) + len(state.under_way[worker])
            assert not {*lost} & {*state.under_way[worker]}
            assert worker in self.here or not state.under_way[worker]
        assert self.possible() or not self.here, "all wait"


@given(
    workers=st.integers(1, 4),
    data=st.data(),
    assign=st.sampled_from(ASSIGNMENTS),
    ignore=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_whoever_comes_and_goes_each_job_is_counted_once_and_the_others_go_on(
    workers: int, data: st.DataObject, assign: str, ignore: int, seed: int
) -> None:
    """Any of the events that are possible, with losses among them; each has a number of its own."""
    wait = data.draw(st.integers(1, workers))
    come_and_go(
        workers, data, lambda job: AsGrad(workers, job, Outer(0.1), assign, "rescaled", wait, ignore, seed)
    )


@given(workers=st.integers(1, 4), data=st.data())
def test_so_it_is_with_ringleader(workers: int, data: st.DataObject) -> None:
    come_and_go(workers, data, lambda job: AsGrad(workers, job, Outer(0.1), rule="ringleader"))


@given(workers=st.integers(1, 4), data=st.data(), rule=st.sampled_from(RULES), ignore=st.integers(0, 3))
def test_so_it_is_with_a_quorum(workers: int, data: st.DataObject, rule: str, ignore: int) -> None:
    least = data.draw(st.integers(1, workers))
    come_and_go(workers, data, lambda job: Quorum(workers, job, Outer(0.1), least, 1.0, rule, ignore))


def come_and_go(workers: int, data: st.DataObject, make: Callable[[Function], AsGrad | Quorum]) -> None:
    seen: Counter[tuple[int, int]] = Counter()

    def note(x: torch.Tensor, worker: int, number: int) -> torch.Tensor:
        seen[worker, number] += 1
        return x - worker

    method = make(Function(note))
    run = Run(method)
    for _ in range(40):
        changes = [(LEFT, SERVER, w) for w in sorted(run.here)]
        changes += [(JOINED, SERVER, w) for w in range(workers) if w not in run.here]
        possible = [*run.possible() * 3, *changes, (LEFT, SERVER, SERVER)]
        run.happens(*data.draw(st.sampled_from(possible)))
        run.check()
    assert max(seen.values(), default=1) == 1
    again = replay(method, ZERO, run.order).states[SERVER]
    assert torch.equal(again.x, run.server.x)
    assert (again.given, again.dropped) == (run.server.given, run.server.dropped)


def test_who_gets_the_jobs_of_one_that_is_lost() -> None:
    def lost(assign: str) -> tuple[list[int], list[int]]:
        run = Run(asgrad(assign=assign, seed=2))
        run.happens(LEFT, SERVER, 1)
        without = [len(numbers) for numbers in run.server.under_way]
        run.happens(JOINED, SERVER, 1)
        return without, [len(numbers) for numbers in run.server.under_way]

    assert lost("pure") == ([1, 0, 1, 1], [1, 1, 1, 1])
    without, back = lost("random")
    assert without == back
    assert (sum(without), without[1]) == (4, 0)
    order = torch.randperm(4, generator=generator(2, "shuffle", 0)).tolist()
    first = next(worker for worker in order if worker != 1)
    without, back = lost("shuffled")
    assert without == back == [int(w != 1) + int(w == first) for w in range(4)]


def test_a_step_waits_for_those_that_are_there() -> None:
    run = Run(asgrad(0.3, wait=4))
    for worker in (0, 3):
        for kind, node, source in ((MESSAGE, worker, SERVER), (STEP, worker, worker), (MESSAGE, SERVER, worker)):
            run.happens(kind, node, source)
    run.happens(LEFT, SERVER, 1)
    assert run.server.version == 0
    run.happens(LEFT, SERVER, 3)  # its result stays
    assert run.server.version == 1
    assert float(run.server.x) == 0 - 0.3 * (((0 - 0) + (0 - 3)) / 2)


def test_what_came_after_the_checkpoint_is_void() -> None:
    run = Run(asgrad(workers=2))
    rounds = [(MESSAGE, 0, SERVER), (STEP, 0, 0), (MESSAGE, SERVER, 0)]
    for event in rounds * 2:
        run.happens(*event)
    saved, kept = copy.deepcopy(run.server), [*run.order]
    for event in [*rounds * 3, (MESSAGE, 0, SERVER)]:
        run.happens(*event)
    assert run.given[0] == 6
    again = replay(run.method, ZERO, [*kept, Event(0, LEFT, SERVER, SERVER), Event(0, JOINED, SERVER, 0, 6)])
    state = again.states[SERVER]
    assert torch.equal(state.x, saved.x)
    assert state.entered == [2, 0]
    assert state.dropped == [(0, 2, "left"), (1, 0, "left"), (0, 3, "void"), (0, 4, "void"), (0, 5, "void")]
    assert state.under_way == [[6], []]


def test_rescaled_counts_from_the_last_change() -> None:
    """A newcomer's first result does not count for all that it has missed."""
    method = asgrad(rule="rescaled")
    state = method.init(SERVER, ZERO)
    state.entered, state.base, state.here = [1000, 1000, 1000, 1], [990, 994, 1000, 0], [True, True, False, True]
    assert [scale("rescaled", state, worker, 0) for worker in (0, 1, 3)] == [17 / 30, 17 / 18, 17 / 3]


def test_a_layup_newcomer_changes_no_sum() -> None:
    """Without steps: the sums of w and of w x, over workers and messages, are those without what was lost."""
    method = LayUp(3, network(), loss, lr=0.0)
    x = Flat(network()).read()
    states = {node: method.init(node, x + node) for node in (0, 1)}
    states[2] = method.enter(2, torch.zeros_like(x))
    assert not method.ready(states[2])
    sent: list[tuple[int, Message]] = []
    box = Box(lambda to, message: sent.append((to, message)))
    for node in (0, 1):
        states[node].done = 7 + node
        method.on_left(states[node], 2, box)
        method.on_step(states[node], box)
    assert {to for to, _ in sent} == {0, 1}  # the one that is missing is not drawn
    for to, message in sent:
        method.on_message(states[to], message, box)
    sent.clear()
    for node in (0, 1):
        method.on_joined(states[node], 2, 0, box)
    for to, message in sent:
        assert to == 2
        method.on_message(states[2], message, box)
    assert method.ready(states[2])
    assert states[2].done == 8  # of the first that it has heard of
    assert states[0].gone == states[1].gone == []
    for layer, piece in enumerate(method._slices):
        w = [2.0 ** state.weights[layer] for state in states.values()]
        assert math.isclose(sum(w), 2.0, abs_tol=1e-14)
        wx = sum(weight * state.x[piece] for weight, state in zip(w, states.values(), strict=True))
        assert torch.allclose(wx, 2 * x[piece] + 1, rtol=0, atol=1e-13)
        assert torch.allclose(states[2].x[piece], x[piece] + 0.5, rtol=0, atol=0.5 + 1e-13)
    assert torch.allclose(method.result(states), x + 0.5, rtol=0, atol=1e-13)


def test_a_method_that_says_nothing_of_losses_ends_with_one() -> None:
    with pytest.raises(PeerLost, match="asgrad: node 2 is lost, and this method does not go on without it"):
        Method.on_left(asgrad(), None, 2, Box(lambda to, message: None))


@pytest.mark.parametrize("kind", [LEFT, JOINED])
def test_only_nodes_come_and_go(kind: str) -> None:
    with pytest.raises(UsageError, match="at one of the nodes"):
        Run(asgrad()).nodes.perform(Event(0.0, kind, SERVER, 7))
