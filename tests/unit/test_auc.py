"""The AUC and its min-max form, against pairs, closed forms and NumPy."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from swarmstep.errors import UsageError
from swarmstep.objectives import AUCMinMax, auc

Examples = st.lists(
    st.tuples(st.floats(-5, 5, width=32), st.booleans()), min_size=2, max_size=40
).filter(lambda rows: len({positive for _, positive in rows}) == 2)  # fmt: skip


def split(rows: list[tuple[float, bool]]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    return tuple(np.array([h for h, y in rows if y is kind], dtype=np.float64) for kind in (True, False))


def tensors(rows: list[tuple[float, bool]]) -> tuple[Tensor, Tensor]:
    return torch.tensor([h for h, _ in rows], dtype=torch.float64), torch.tensor([int(y) for _, y in rows])


@given(Examples)
def test_the_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, bool]]) -> None:
    high, low = split(rows)
    pairs = (high[:, None] > low).mean() + 0.5 * (high[:, None] == low).mean()
    scores, targets = tensors(rows)
    assert auc(scores, targets) == pytest.approx(pairs, abs=1e-12)
    assert auc(-scores, targets) == pytest.approx(1 - pairs, abs=1e-12)
    assert auc(scores[:, None], 1 - targets) == pytest.approx(1 - pairs, abs=1e-12)


def test_an_auc_that_has_no_value_is_nan() -> None:
    assert math.isnan(auc(torch.tensor([1.0, 2.0]), torch.tensor([1, 1])))
    assert math.isnan(auc(torch.tensor([1.0, math.nan]), torch.tensor([0, 1])))


@given(Examples)
def test_at_the_saddle_it_is_the_square_loss_of_the_pairs(rows: list[tuple[float, bool]]) -> None:
    """min over a and b, max over alpha: p (1-p) E(1 - h+ + h-)^2, at a = mean+, b = mean-, alpha = b - a."""
    high, low = split(rows)
    p = len(high) / len(rows)
    criterion = AUCMinMax(p).double()
    scores, targets = tensors(rows)
    saddle = criterion.settle(scores, targets)
    assert saddle == pytest.approx((high.mean(), low.mean(), low.mean() - high.mean()), abs=1e-6)
    pairs = (1 - high[:, None] + low) ** 2
    assert criterion(scores, targets).item() == pytest.approx(p * (1 - p) * pairs.mean(), rel=1e-5, abs=1e-9)
    criterion(scores, targets).backward()
    for parameter in criterion.parameters():
        assert parameter.grad is not None
        assert abs(float(parameter.grad)) < 1e-6


def test_the_gradient_is_that_of_the_pairs_at_the_saddle() -> None:
    """So training for F with the best a, b, alpha is training for all pairs."""
    generator = np.random.default_rng(0)
    h, y = generator.normal(size=30), np.arange(30) < 7
    scores = torch.tensor(h, requires_grad=True)
    criterion = AUCMinMax(7 / 30).double()
    criterion.settle(scores, torch.tensor(y).long())
    criterion(scores, torch.tensor(y).long()).backward()
    pairs = 1 - h[y][:, None] + h[~y]
    expected = np.zeros(30)
    expected[y], expected[~y] = -2 * pairs.sum(1), 2 * pairs.sum(0)
    assert scores.grad is not None
    np.testing.assert_allclose(scores.grad.numpy(), expected / 900, rtol=1e-6)


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_alpha_ascends_and_the_rest_descends(p: float) -> None:
    """Each gradient against the derivative of F by differences; only alpha's has its sign turned."""
    scores, targets = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64), torch.tensor([1, 0, 0])
    criterion = AUCMinMax(p).double()
    with torch.no_grad():
        for parameter, value in zip(criterion.parameters(), (0.7, -0.2, 0.4), strict=True):
            parameter.fill_(value)
    criterion(scores, targets).backward()
    for name, parameter in criterion.named_parameters():
        values: list[float] = []
        for sign in (1, -1):
            moved = copy.deepcopy(criterion)
            with torch.no_grad():
                getattr(moved, name).add_(sign * 1e-6)
            values.append(moved(scores, targets).item())
        slope = (values[0] - values[1]) / 2e-6
        assert parameter.grad is not None
        assert float(parameter.grad) == pytest.approx(-slope if name == "alpha" else slope, rel=1e-5)


def test_swapping_labels_and_the_sign_of_the_score_changes_nothing() -> None:
    scores, targets = torch.randn(20, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 4 // 3
    p, one, other = 0.25, AUCMinMax(0.25), AUCMinMax(0.75)
    a, b, alpha = one.settle(scores, targets)
    swapped = other.settle(-scores, 1 - targets)
    assert swapped == pytest.approx((-b, -a, alpha), abs=1e-6)
    assert other(-scores, 1 - targets).item() == pytest.approx(one(scores, targets).item(), rel=1e-5)
    assert p == one.positive_rate


def gaussian(count: int) -> tuple[Tensor, Tensor]:
    """Two classes of normal examples in three dimensions, a quarter of them positive, in double precision."""
    generator = torch.Generator().manual_seed(1)
    targets = (torch.arange(count) % 4 == 0).long()
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    x[targets == 1] = x[targets == 1] * torch.tensor([1.0, 0.5, 2.0]) + torch.tensor([0.8, -0.3, 0.5])
    return x, targets


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_any_optimizer_finds_the_best_linear_score(kind: Any) -> None:
    """w* = S^-1 delta / (1 + delta' S^-1 delta), and the loss of a pair is 1 / (1 + delta' S^-1 delta)."""
    x, targets = gaussian(400)
    model, criterion = nn.Linear(3, 1, bias=False).double(), AUCMinMax(0.25).double()
    optimizer = kind([*model.parameters(), *criterion.parameters()], lr=1.0 if kind is torch.optim.SGD else 0.02)
    for _ in range(500):
        optimizer.zero_grad()
        criterion(model(x), targets).backward()
        optimizer.step()
    high, low = x[targets == 1].numpy(), x[targets == 0].numpy()
    delta, spread = high.mean(0) - low.mean(0), np.cov(high.T, bias=True) + np.cov(low.T, bias=True)
    solved = np.linalg.solve(spread, delta)
    distance = float(delta @ solved)
    np.testing.assert_allclose(model.weight[0].detach().numpy(), solved / (1 + distance), atol=0.02)
    assert criterion(model(x), targets).item() == pytest.approx(0.1875 / (1 + distance), rel=1e-2)
    assert criterion.alpha.item() == pytest.approx(-distance / (1 + distance), abs=0.02)


def test_its_auc_is_that_of_normal_classes() -> None:
    """AUC = Phi(w'delta / sqrt(w' S w)) for any linear score w of normal classes."""
    x, targets = gaussian(40_000)
    w, delta = torch.tensor([0.3, -0.2, 0.4]).double(), torch.tensor([0.8, -0.3, 0.5]).double()
    spread = torch.tensor([1.0, 0.25, 4.0]) + 1.0
    z = float(w @ delta / (spread.double() * w * w).sum().sqrt())
    assert auc(x @ w, targets) == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=0.01)


def test_wrong_calls_are_named() -> None:
    with pytest.raises(UsageError, match=r"positive_rate: expected above 0 and below 1, found 1\.0"):
        AUCMinMax(1.0)
    with pytest.raises(UsageError, match=r"found \[3, 2\] and \[3\]"):
        AUCMinMax()(torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(UsageError, match="targets of 0 and 1"):
        AUCMinMax()(torch.zeros(3), torch.tensor([0, 1, 2]))
    with pytest.raises(UsageError, match="both classes, found 3 of one"):
        AUCMinMax().settle(torch.zeros(3), torch.ones(3))
