"""Hierarchical local SGD against its definition; what the conformance suite holds, with more than one host."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import Trainer, run, same, timed
from rounds import Array, Game, game, play, weighted
from swarmstep import Comm, Every, Group, Hierarchical, LocalSGD, Synchronizer, simulate
from swarmstep.errors import CommError, UsageError
from wrapped import Wrapped

WORKERS, STEPS = 4, 9
PAIRS = Hierarchical(local_size=2, outer_every=2)


def oracle(g: Game, local: int, k: int) -> Array:
    """The definition: nothing is cut into slices, and nobody sends anything."""
    x, history = np.tile(g.start, (g.workers, 1)), []
    for r, drift in enumerate(g.drift):
        here = np.array([not g.absent(r, i) for i in range(g.workers)])
        x[here] += drift[here]
        size = g.workers if (r + 1) % k == 0 else local
        for first in range(0, g.workers, size):
            group = np.arange(first, first + size)
            if here[group].any():
                x[group] = g.mean(r, x, group)
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize(
    ("workers", "local"), [(1, 1), (4, 1), (4, 2), (4, 4), (6, 2), (6, 3), (8, 4), (3, None), (5, None)]
)
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 7])  # fewer elements than workers, and odd
def test_oracle(workers: int, local: int | None, k: int, size: int) -> None:
    g = game(workers, size=size)
    expected = oracle(g, local or workers, k)
    played = play(Hierarchical(local, k), g)
    np.testing.assert_allclose(played.weights, expected, atol=1e-12)
    np.testing.assert_allclose(played.results, np.tile(expected[-1].mean(axis=0), (workers, 1)), atol=1e-12)
    assert all(state["rounds"] == len(g.drift) for state in played.states)


@given(
    *(st.integers(1, n) for n in (3, 3, 4)),
    st.dictionaries(st.integers(0, 7), st.integers(0, 6)),
    st.integers(0, 2**16),
)
def test_oracle_with_workers_that_have_finished(
    hosts: int, local: int, k: int, finished: dict[int, int], seed: int
) -> None:
    workers = hosts * local
    g = weighted(game(workers, seed=seed, finished={i: r for i, r in finished.items() if i < workers - 1}))
    np.testing.assert_allclose(
        play(Hierarchical(local, k), g).weights, oracle(g, local, k), rtol=1e-11, atol=1e-12
    )


def test_a_host_on_which_all_have_finished_waits_for_the_others() -> None:
    g = game(4, finished={2: 1, 3: 2})
    x = play(Hierarchical(2, 4), g).weights
    np.testing.assert_array_equal(x[2, 2:], x[1, 2:])  # keeps its weights
    assert (x[2, :2] != x[1, :2]).all()
    np.testing.assert_allclose(x[3], np.tile((x[2, 0] + g.drift[3, :2].mean(axis=0)), (4, 1)), atol=1e-12)


def test_all_workers_are_equal_bitwise_where_the_hosts_meet() -> None:
    x = play(Hierarchical(3, 2), game(6), double=False).weights
    for r in range(6):
        assert (x[r] == x[r, 0]).all() == (r % 2 == 1)
        assert (x[r, :3] == x[r, 0]).all()
        assert (x[r, 3:] == x[r, 3]).all()


@pytest.mark.parametrize("local", [None, WORKERS])
@pytest.mark.parametrize("trigger", ["every-1", "warm-up", "vote"])
def test_one_host_is_local_sgd(local: int | None, trigger: str) -> None:
    one, plain = timed(Hierarchical(local, 2), trigger), timed(LocalSGD(), trigger)
    for a, b in zip(*(simulate(lambda c, s=s: run(c, s, STEPS), WORKERS) for s in (one, plain)), strict=True):
        assert same(a.weights, b.weights)


@pytest.mark.parametrize("workers", [4, 6])
def test_hosts_that_always_meet_are_local_sgd(workers: int) -> None:
    found, plain = (
        simulate(lambda c, s=s: run(c, s, STEPS), workers)
        for s in (Hierarchical(2, 1, when=Every(3)), LocalSGD(when=Every(3)))
    )
    for a, b in zip(found, plain, strict=True):
        for x, y in zip(a.weights, b.weights, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_are_hosts_of_their_own_are_local_sgd_at_each_kth_round(workers: int) -> None:
    alone, plain = Hierarchical(1, 3, when=Every(1)), LocalSGD(when=Every(3))
    for a, b in zip(*(simulate(lambda c, s=s: run(c, s, STEPS), workers) for s in (alone, plain)), strict=True):
        assert same(a.weights, b.weights)


@pytest.mark.parametrize(("hosts", "local"), [(2, 2), (3, 2), (2, 3), (4, 1), (1, 4)])
@pytest.mark.parametrize("size", [12, 7])
def test_metered_bytes_are_the_formulas_of_the_card(hosts: int, local: int, size: int) -> None:
    """Inside a host 2 (L-1)/L (P+1) a worker; all together 2 (W-1)/W P, and one weight behind each slice."""
    workers, n = hosts * local, -(-size // local)
    padded = n * local
    sent = play(Hierarchical(local, 3), game(workers, size=size)).sent.sum(axis=1)
    inner = 2 * (local - 1) * (size + 1) * hosts * 8
    outer = (2 * (workers - 1) * padded + 2 * (hosts - 1) * local) * 8 if hosts > 1 else inner
    np.testing.assert_array_equal(sent, [inner, inner, outer] * 2)


Calls = list[tuple[str, str, int]]  # group, verb, elements


class Watched(Wrapped):
    """Any group and all groups split from it, whose calls are noted and fail once there are `left`."""

    def __init__(self, inner: Group, calls: Calls, left: list[int], name: str = "world") -> None:
        super().__init__(inner)
        self.calls, self.left, self.name = calls, left, name

    def before(self, verb: str, elements: int) -> None:
        if len(self.calls) >= self.left[0]:
            raise CommError("the network is gone")
        self.calls.append((self.name, verb, elements))

    def split(self, color: int, name: str = "") -> Group:
        return Watched(super().split(color, name), self.calls, self.left, name)


def watch(comm: Comm, rounds: int) -> tuple[Calls, int]:
    """Make every call of the next round fail in turn; nothing may change. Returns the calls of the whole round."""
    watched = Watched(comm, [], [10**9])
    trainer = Trainer(dataclasses.replace(PAIRS, when=Every(3)), watched)
    for _ in range(3 * rounds + 2):
        trainer.step()
    saved = trainer.save()
    for k in range(100):
        trainer.load(saved)
        loss = trainer.local_step()
        model = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
        before = trainer.sync.state_dict()
        watched.calls.clear()
        watched.left[0] = k
        try:
            assert trainer.sync.step(loss, lr=0.1) is not None
            return [call for call in watched.calls if call[1] != "split"], trainer.weights().numel()
        except CommError as error:
            assert str(error) == f"step {3 * rounds + 3}: the network is gone"  # noqa: PT017
        after = trainer.sync.state_dict()
        assert same(after["fragments"][0]["state"], before["fragments"][0]["state"])
        assert same(after["weights"], before["weights"])
        assert same(dict(trainer.model.state_dict()), model)
        watched.left[0] = 10**9
    raise AssertionError("a round of a hundred calls")


def test_a_round_that_fails_at_any_call_changes_nothing_and_only_a_slice_leaves_the_host() -> None:
    for calls, p in simulate(lambda comm: watch(comm, 0), WORKERS):
        assert calls == [("world", "gather", 7), ("hosts of 2", "mean", p)]
    for calls, p in simulate(lambda comm: watch(comm, 1), WORKERS):
        n = -(-p // 2)
        assert calls == [
            ("world", "gather", 7),
            ("hosts of 2", "all_to_all", 2 * n),
            ("across hosts of 2", "mean", n),
            ("hosts of 2", "gather", n),
        ]


@pytest.mark.parametrize("local", [None, 1, 3])
def test_where_the_workers_are_one_group_no_others_are_made(local: int | None) -> None:
    def train(comm: Comm) -> Calls:
        watched = Watched(comm, [], [10**9])
        trainer = Trainer(Hierarchical(local, 2, when=Every(1)), watched)
        for _ in range(4):
            trainer.step()
        return watched.calls

    assert all(group == "world" and verb != "split" for calls in simulate(train, 3) for group, verb, _ in calls)


def test_two_sizes_of_hosts_on_one_comm_do_not_share_groups() -> None:
    def train(comm: Comm) -> list[Tensor]:
        found = []
        for local in (2, 4, 1):
            strategy = Hierarchical(local, 2, when=Every(1))
            trainer = Trainer(strategy, comm)
            trainer.step()
            found.append(trainer.weights())
        return found

    weights = simulate(train, 4)
    for k, alike in enumerate((2, 4, 1)):
        assert [same(weights[0][k], other[k]) for other in weights] == [i < alike for i in range(4)]


@pytest.mark.parametrize(("workers", "local"), [(5, 2), (1, 2), (4, 3)])
def test_workers_that_do_not_fill_the_hosts(workers: int, local: int) -> None:
    said = f"{workers} workers do not fill hosts of local_size={local}; start a multiple of {local} workers"
    with pytest.raises(UsageError, match=said):
        simulate(lambda comm: Synchronizer(torch.nn.Linear(2, 2), Hierarchical(local), comm), workers)


@pytest.mark.parametrize("fields", [{"local_size": 0}, {"local_size": -2}, {"outer_every": 0}])
def test_ranges(fields: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        Hierarchical(**fields)
