"""Balanced work in one's own loop: shares, weights, resuming, what is refused; rounds by time."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from balanced import BATCH, EXAMPLES, LR, by_batch, by_steps, data
from swarmstep import (
    Balance,
    Balanced,
    Comm,
    Every,
    EveryTime,
    LocalSGD,
    Options,
    Round,
    Strategy,
    Synchronizer,
    TrimmedMean,
    simulate,
)
from swarmstep.comm.group import Decision
from swarmstep.data.stream import Stream
from swarmstep.errors import UsageError
from swarmstep.runtime.regrouping import _packed, _unpacked
from swarmstep.signal import Distrust, Layout, Signal


def test_the_weighted_mean_of_gradients_is_that_of_the_full_batch() -> None:
    """Gradient descent on all 21 examples of each step, by hand: weights are b_j / sum b, never 1 / W."""
    x, y = (array.numpy() for array in data())
    x, stream, w = np.column_stack([x, np.ones(EXAMPLES)]), Stream(EXAMPLES, 0), np.zeros(5)
    for step in range(12):
        seen = stream.draw(step * 3 * BATCH, (step + 1) * 3 * BATCH).numpy()
        w -= LR * 2 * x[seen].T @ (x[seen] @ w - y[seen]) / len(seen)
    found = simulate(lambda comm: by_batch(comm, gradients=True), 3)
    assert all(shares == (12, 6, 3) for _, shares in found)
    for weights, _ in found:
        np.testing.assert_allclose(weights, w, rtol=1e-12)


@pytest.mark.parametrize("gradients", [True, False])
def test_a_loop_of_ones_own_resumes_bitwise(gradients: bool) -> None:
    whole = simulate(lambda comm: by_batch(comm, gradients), 3)
    for cut in (1, 3, 7):
        assert simulate(lambda comm, cut=cut: by_batch(comm, gradients, cut=cut), 3) == whole


def test_by_steps_all_arrive_at_a_round_after_their_own() -> None:
    """21 steps a round in proportion 4 : 2 : 1 are 12, 6 and 3, for all 7 of the run; the first is equal."""
    counted = {
        12: [0, 1, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7],  # floor(7 j / 12), ...
        6: [1, 2, 3, 4, 5, 7],
        3: [2, 4, 7],
    }
    found = simulate(by_steps, 3)
    for (own, run, shares), n in zip(found, (12, 6, 3), strict=True):
        assert own == [7, 7 + n, 7 + 2 * n, 7 + 3 * n]
        assert run == [*range(1, 8), *(7 * r + step for r in (1, 2, 3) for step in counted[n])]
        assert shares == (12, 6, 3)


def test_without_a_balance_the_trigger_is_every_n() -> None:
    when, layout = Balanced(3), Layout(("a",), (1,), 1)
    state = when.init(layout, 2)
    asked = [Signal(n, 0, None, float, torch.Tensor, None, layout) for n in range(1, 10)]
    assert [when.due(state, signal) for signal in asked] == [n % 3 == 0 for n in range(1, 10)]
    with pytest.raises(UsageError, match="Balanced: expected n >= 1, found 0"):
        Balanced(0)


def balance_of(strategy: Strategy, batch: Any = None) -> Callable[[Comm], Balance]:
    def build(comm: Comm) -> Balance:
        return Balance(Synchronizer(nn.Linear(1, 1), strategy, comm), batch)

    return build


def test_update_takes_what_a_round_says_each_worker_has_spent() -> None:
    """A round of 2 steps with 40 examples took the workers 1 and 3 s: 60 and 20 examples from now on."""

    def shares(comm: Comm) -> list[tuple[int, ...]]:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=Every(2)), comm)
        balance, found = Balance(sync, 40), list[tuple[int, ...]]()
        for _ in range(2):
            event = sync.step(1.0, weight=balance.batch)
            if isinstance(event, Round):
                event = dataclasses.replace(event, compute_seconds=(1.0, 3.0))
            balance.update(event)
            found.append(balance.shares)
        sync.finish()
        return found

    assert simulate(shares, 2) == [[(40, 40), (60, 20)]] * 2


def test_measured_seconds_are_shared_by_the_round() -> None:
    def shares(comm: Comm) -> list[tuple[int, ...]]:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=Balanced(5)), comm)
        balance, found = Balance(sync, band=0.0), list[tuple[int, ...]]()
        while len(found) < 4:
            event = sync.step(1.0)
            balance.update(event)
            if event:
                found.append(balance.shares)
        sync.finish()
        return found

    found = simulate(shares, 3)
    assert found[0] == found[1] == found[2]
    assert all(sum(row) == 15 and min(row) >= 1 for row in found[0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (balance_of(LocalSGD()), r"expected LocalSGD\(when=Balanced\(n\)\), found Every"),
        (balance_of(LocalSGD(when=Balanced(4)), 8), r"by batch all take the same steps; expected Every\(n\)"),
        (balance_of(TrimmedMean(), 8), "TrimmedMean does not count workers by their weights"),
        (balance_of(LocalSGD(), 0), "expected a batch of at least 1 example, found 0"),
        (lambda comm: balance_of(LocalSGD(when=Balanced(4)))(comm).batch, "by steps the batches stay"),
    ],
)
def test_what_a_balance_does_not_go_with(build: Callable[[Comm], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        simulate(build, 2)


@pytest.mark.parametrize("options", [{"delay": 1}, {"fragments": 2}])
def test_seconds_of_other_shares_are_refused(options: dict[str, int]) -> None:
    def update(comm: Comm) -> None:
        model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        sync = Synchronizer(model, LocalSGD(when=Every(2)), comm, Options(**options))
        balance = Balance(sync, 8)
        for _ in range(6):
            balance.update(sync.step(1.0))

    with pytest.raises(UsageError, match=r"Balance.update: expected no delay and 1 fragment.* call measured\(\)"):
        simulate(update, 2)


@pytest.mark.parametrize("together", [True, False])
def test_rounds_by_time(together: bool) -> None:
    """A trigger hears the seconds since the last round, which begin anew with it."""
    when, layout = EveryTime(2.5, together), Layout(("a",), (1,), 1)
    assert (when.voting, when.per_rank, when.period) == (together, not together, 0)
    told = [Signal(1, 0, None, float, torch.Tensor, None, layout, seconds=s) for s in (0.0, 2.4, 2.5, 9.0)]
    assert [when.due(when.init(layout, 2), signal) for signal in told] == [False, False, True, True]
    for wrong in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="EveryTime: expected finite seconds above 0"):
            EveryTime(wrong)


@pytest.mark.parametrize("together", [True, False])
def test_all_take_part_in_rounds_by_time(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 takes 1 s a step, rank 1 takes 2: with rounds of 4 s they take 2 steps both, or 4 and 2."""

    def rounds(comm: Comm) -> list[int]:
        now = [0.0]
        monkeypatch.setattr(type(comm), "clock", lambda self: clocks[self.rank][0])
        clocks[comm.rank] = now
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=EveryTime(4.0, together)), comm)
        landed: list[int] = []
        for _ in range(8 // (comm.rank + 1) if not together else 6):
            now[0] += comm.rank + 1
            if sync.step(1.0):
                landed.append(sync.steps)
        sync.finish()
        return landed

    clocks: dict[int, list[float]] = {0: [0.0], 1: [0.0]}
    assert simulate(rounds, 2) == ([[2, 4, 6], [2, 4, 6]] if together else [[4, 8], [2, 4]])


def test_what_a_newcomer_is_told_of_a_round_is_data() -> None:
    """It is sent as a checkpoint is written, and read without running anything."""

    def one_round(comm: Comm) -> Round:
        sync, event = Synchronizer(nn.Linear(1, 1), LocalSGD(), comm), None
        while not isinstance(event, Round):
            event = sync.step(1.0)
        sync.finish()
        return event

    told = simulate(one_round, 2)[0]
    told = dataclasses.replace(told, decision=Decision(renew=True), distrusted=(Distrust(1, 3, "why"),))
    file = io.BytesIO()
    torch.save(_packed(told), file)
    file.seek(0)
    assert _unpacked(torch.load(file, weights_only=True)) == told
