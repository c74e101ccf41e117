"""Triggers: SelSync's statistic and QSR's intervals against NumPy, and that they resume bitwise."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from swarmstep import (
    Comm,
    Every,
    EveryTime,
    GradientChange,
    LocalSGD,
    QuadraticRule,
    Synchronizer,
    Warmup,
    When,
    simulate,
)
from swarmstep.errors import UsageError
from swarmstep.signal import Layout, Signal
from swarmstep.train.trigger_options import parse_when

LAYOUT = Layout(("a", "b", "buffer"), (2, 3, 4), 5)
GRADIENTS = np.random.default_rng(0).normal(size=(80, 5)) * np.exp(np.linspace(0, 2, 80))[:, None]


def signal(step: int, gradient: Any = None, lr: float | None = None) -> Signal:
    return Signal(step, 0, lr, lambda: 0.0, lambda: torch.tensor(gradient), None, LAYOUT)


def answers(when: When, size: int = 4, lrs: list[float] | None = None, gradients: Any = GRADIENTS) -> list[bool]:
    state, found = when.init(LAYOUT, size), []
    for t, gradient in enumerate(gradients):
        before = [id(tensor) for tensor in state]
        found.append(when.due(state, signal(t + 1, gradient, lrs[t] if lrs else None)))
        assert before == [id(tensor) for tensor in state]
    return found


def selsync(window: int, s: float) -> list[float | None]:
    """D_t from the equations; None while the windows are not full."""
    g = [np.linalg.norm(row[:2]) + np.linalg.norm(row[2:]) for row in GRADIENTS]

    def smooth(values: list[float]) -> float:
        weights = [(1 - s) ** age for age in range(window)]
        return sum(w * v for w, v in zip(weights, values[::-1], strict=False)) / sum(weights)

    G = {t: smooth(g[t - window + 1 : t + 1]) for t in range(window - 1, len(g))}
    change = {t: abs(G[t] - G[t - 1]) / G[t - 1] for t in range(window, len(g))}
    return [
        smooth([change[u] for u in range(t - window + 1, t + 1)]) if t - window + 1 in change else None
        for t in range(len(g))
    ]


@pytest.mark.parametrize("window", [1, 2, 5, 25])
@pytest.mark.parametrize("smoothing", [None, 0.3, 1.0])
def test_selsync_statistic(window: int, smoothing: float | None) -> None:
    D = selsync(window, 0.04 if smoothing is None else smoothing)
    assert [d is None for d in D] == [t < 2 * window for t in range(1, len(D) + 1)]
    known = sorted(d for d in D if d is not None)
    threshold = (known[len(known) // 2] + known[len(known) // 2 - 1]) / 2
    expected = [d is None or d >= threshold for d in D]
    assert answers(GradientChange(threshold, window, smoothing), size=4) == expected


def test_selsync_limits() -> None:
    assert all(answers(GradientChange(0.0, 3)))
    assert not any(answers(GradientChange(1e9, 3))[6:])
    assert all(answers(GradientChange(0.5, 3), gradients=np.zeros((20, 5))))  # 0/0: rather talk
    assert GradientChange().voting
    assert answers(GradientChange(0.3), size=400)  # the default smoothing stays in its range


@pytest.mark.parametrize("fields", [{"threshold": -1.0}, {"window": 0}, {"smoothing": 1.5}])
def test_selsync_ranges(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(fields))):
        GradientChange(**fields)


def qsr(base: int, alpha: float, lrs: list[float]) -> list[bool]:
    """Return whether a round is due after each step; the rates since the last round include its own."""
    due, last = [], 0
    for step in range(1, len(lrs) + 1):
        highest = max(lrs[max(last, 1) - 1 : step])
        n = max(base, int(np.floor((alpha / highest) ** 2))) if highest else base
        due.append(step - last >= n)
        last = step if due[-1] else last
    return due


@pytest.mark.parametrize(("base", "alpha"), [(1, 0.1), (3, 0.15), (4, 1e-9)])
@pytest.mark.parametrize("end", [0.02, 0.0])
def test_qsr_intervals(base: int, alpha: float, end: float) -> None:
    lrs = np.linspace(0.1, end, 80).tolist()
    assert answers(QuadraticRule(base, alpha), lrs=lrs) == qsr(base, alpha, lrs)


@pytest.mark.parametrize("first", [0.0, 1e-4])
def test_qsr_has_its_first_rounds_while_the_rate_still_rises(first: float) -> None:
    lrs = np.linspace(first, 0.1, 60).tolist() + [0.1] * 20
    answer = answers(QuadraticRule(4, 0.1), lrs=lrs)
    assert answer == qsr(4, 0.1, lrs)
    assert np.flatnonzero(answer)[0] < 25
    assert np.diff(np.flatnonzero(answer)[-5:]).tolist() == [4] * 4


def test_qsr_is_at_its_base_where_the_rate_is_zero() -> None:
    assert answers(QuadraticRule(5, 0.1), lrs=[0.0] * 80) == answers(Every(5))
    rounds = np.flatnonzero(answers(QuadraticRule(2, 0.1), lrs=[0.1] * 10 + [0.0] * 70)) + 1
    assert rounds.tolist() == list(range(2, 81, 2))


def test_qsr_grows_as_the_rate_falls() -> None:
    rounds = np.flatnonzero(answers(QuadraticRule(2, 0.1), lrs=[0.1] * 20 + [0.02] * 60)) + 1
    assert rounds.tolist() == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 47, 72]


def test_qsr_with_a_small_constant_alpha_is_every() -> None:
    assert answers(QuadraticRule(5, 1e-6), lrs=[0.1] * 80) == answers(Every(5))


@pytest.mark.parametrize("lr", [None, float("nan"), -1.0])
def test_qsr_needs_a_rate(lr: float | None) -> None:
    when = QuadraticRule(2, 0.1)
    with pytest.raises(UsageError, match=r"step 1: QuadraticRule needs .*step\(loss, lr\)"):
        when.due(when.init(LAYOUT, 2), signal(1, lr=lr))


@pytest.mark.parametrize("fields", [(0, 0.1), (2, 0.0), (2, float("inf"))])
def test_qsr_ranges(fields: tuple[int, float]) -> None:
    with pytest.raises(UsageError):
        QuadraticRule(*fields)


STRATEGIES = {
    "change": LocalSGD(when=GradientChange(0.6, 3)),
    "qsr": LocalSGD(when=QuadraticRule(2, 0.12)),
    "warm-up": Warmup(LocalSGD(when=GradientChange(0.6, 3)), 4),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_resume_is_bitwise(name: str) -> None:
    """Cut at every step: everything is thrown away and rebuilt from its checkpoint."""

    def run(comm: Comm, cut: bool) -> tuple[list[torch.Tensor], list[int]]:
        def build() -> tuple[torch.nn.Module, Synchronizer]:
            torch.manual_seed(comm.rank)
            model = torch.nn.Linear(3, 2)
            return model, Synchronizer(model, STRATEGIES[name], comm)

        model, sync = build()
        seen, rounds = [], []
        for step in range(1, 25):
            lr = 0.1 / step**0.5
            generator = torch.Generator().manual_seed(100 * step + comm.rank)
            loss = (model(torch.randn(4, 3, generator=generator)) ** 2).mean()
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= lr * p.grad
            if sync.step(loss, lr):
                rounds.append(step)
            seen.append(model.weight.detach().clone())
            if cut:
                saved = copy.deepcopy((model.state_dict(), sync.state_dict()))
                model, sync = build()
                model.load_state_dict(saved[0])
                sync.load_state_dict(saved[1])
        return seen, rounds

    whole, cut = (simulate(lambda comm, cut=cut: run(comm, cut), 3) for cut in (False, True))
    assert 0 < len(whole[0][1]) < 24
    for (a, rounds), (b, again) in zip(whole, cut, strict=True):
        assert rounds == again == whole[0][1]
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_command_line_forms() -> None:
    assert parse_when("every:4", 8) == Every(4)
    assert parse_when("change:0.2", 8) == GradientChange(0.2)
    assert parse_when("qsr:4,0.05", 8) == QuadraticRule(4, 0.05)
    assert parse_when("time:2.5", 8) == EveryTime(2.5)
    wrong_forms = "change change:x qsr:4 qsr:a,b qsr:4, never:1 warmup:2 every:4, every:4,8 every:"
    for wrong in wrong_forms.split():
        with pytest.raises(UsageError, match=r"expected every:N, .*change:THRESHOLD, qsr:BASE,ALPHA"):
            parse_when(wrong, 8)
