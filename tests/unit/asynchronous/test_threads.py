"""The nodes as threads: whatever happens, a replay of its record leads to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from swarmstep.asynchronous import (
    PDASGD,
    SERVER,
    AsGrad,
    Displacement,
    Flat,
    Function,
    LayUp,
    Mailbox,
    Message,
    Method,
    Outer,
    Quorum,
    WorkerState,
    replay,
    run_threads,
)
from swarmstep.cards import ASYNCHRONOUS
from swarmstep.errors import PeerLost, UsageError

from .quadratics import FOUR, ZERO, asgrad, loss, network


def made(kind: str) -> tuple[Method[Any], Tensor]:
    model = network()
    x, work = Flat(model).read(), Displacement(model, loss, 2, lambda ps: torch.optim.AdamW(ps, lr=0.01))
    return {
        "asgrad": AsGrad(3, work, Outer(0.7, 0.5, 3), "random", "staleness", 2),
        "layup": LayUp(3, model, loss, lr=0.1),
        "pd-asgd": PDASGD(2, model, loss, lr=0.1),
        "quorum": Quorum(3, work, Outer(0.7, 0.5), 2, 0.001),
    }[kind], x


@pytest.mark.parametrize("kind", ["asgrad", "layup", "pd-asgd", "quorum"])
def test_what_happens_is_replayed_bit_for_bit(kind: str) -> None:
    method, x = made(kind)
    run = run_threads(method, x, events=150)
    assert len(run.order) == 150
    other, _ = made(kind)
    again = replay(other, x, run.order)
    for node, state in run.states.items():
        assert str(state) == str(again.states[node])
    assert torch.equal(method.result(run.states), other.result(again.states))


def test_timers_run_out() -> None:
    """A quorum of one of two, and no grace: a round closes before the other has delivered, now and then."""
    run = run_threads(Quorum(2, FOUR, Outer(0.5), 1), ZERO, events=200)
    assert run.states[SERVER].version >= sum(event.kind == "timer" for event in run.order) > 0


def test_what_a_node_raises_ends_all() -> None:
    def work(x: Tensor, worker: int, number: int) -> Tensor:
        if number == 3:
            raise ValueError("no more data")
        return x - worker

    with pytest.raises(ValueError, match="no more data"):
        run_threads(AsGrad(3, Function(work), Outer(0.1)), ZERO, events=10_000)


class Lone(Method[WorkerState]):
    """One node, which posts to a node that there is not, if it does anything."""

    card = ASYNCHRONOUS["layup"]
    workers = 1

    def __init__(self, posts: bool) -> None:
        self._posts = posts

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def init(self, node: int, x: Tensor) -> WorkerState:
        return WorkerState(node, 0, [], {})

    def ready(self, state: WorkerState) -> bool:
        return self._posts

    def on_step(self, state: WorkerState, box: Mailbox) -> None:
        box.post(9, Message(0, (), ZERO))

    def on_message(self, state: WorkerState, message: Message, box: Mailbox) -> None:
        raise AssertionError

    def result(self, states: Mapping[int, WorkerState]) -> Tensor:
        raise AssertionError


def test_who_waits_too_long_says_so() -> None:
    with pytest.raises(PeerLost, match=r"node 0: nothing came within the limit of 0\.1 s"):
        run_threads(Lone(posts=False), ZERO, events=100, limit=0.1)


def test_a_message_to_nobody_is_refused() -> None:
    with pytest.raises(UsageError, match=r"node 0 posted a message to 9, expected one of \(0,\)"):
        run_threads(Lone(posts=True), ZERO, events=100)


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match="found events 0, limit 60"):
        run_threads(asgrad(), ZERO, events=0)
    with pytest.raises(UsageError, match="limit 0"):
        run_threads(asgrad(), ZERO, events=1, limit=0)
