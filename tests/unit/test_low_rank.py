"""The low-rank codec: its mean against NumPy, feedback, exact low ranks, bytes, and what a round leaves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from helpers import same
from swarmstep import Comm, Metered, simulate
from swarmstep.comm.codecs import LowRank
from swarmstep.comm.coded import Coded
from swarmstep.comm.low_rank import _orthogonal, ordered_sum
from swarmstep.errors import CommError, UsageError

SHAPES = [(12, 9), (9,), (4, 3, 5), (2, 3)]  # the last is too small for rank 2
SIZES = [108, 9, 60, 6]
P = sum(SIZES)
RANK = 2


def vectors(r: int, rank: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng([r, rank]).normal(size=P)


def play(comm: Comm, weights: list[list[float]]) -> list[Any]:
    coded = Coded(comm, LowRank(RANK), torch.zeros(P), shapes=SHAPES)
    found = []
    for r, row in enumerate(weights):
        x = coded.state[0] + torch.from_numpy(vectors(r, comm.rank)).float()
        before = [t.clone() for t in coded.state]
        coded.discard()
        mean, total = coded.mean(x, row[comm.rank])
        assert same([*coded.state], before), "mean changed the state"
        sent = coded.sent(x)
        coded.commit(mean)
        found.append((mean, total, sent, [t.clone() for t in coded.state]))
    return found


def matrices(x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Return the tensors of a vector: the first and the third as matrices."""
    parts = np.split(x, np.cumsum(SIZES)[:-1])
    return [parts[0].reshape(12, 9), parts[1], parts[2].reshape(4, 15), parts[3]]


def gram_schmidt(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    q, r = np.linalg.qr(x)
    return q * np.sign(np.diag(r))


class Model:
    """The equations of the docstring of `LowRank` in float64, for all ranks at once."""

    def __init__(self, bases: dict[int, np.ndarray[Any, Any]]) -> None:
        self.bases, self.reference, self.residuals = bases, np.zeros(P), np.zeros((3, P))

    def tensor(self, k: int, parts: list[Any], w: list[float]) -> tuple[Any, list[Any]]:
        """Return the mean of a tensor, and what each rank has given of its own."""
        if k not in self.bases:
            return sum(wi * d for wi, d in zip(w, parts, strict=True)), parts
        p = gram_schmidt(sum(wi * d @ self.bases[k] for wi, d in zip(w, parts, strict=True)))
        rights = [d.T @ p for d in parts]
        self.bases[k] = sum(wi * q for wi, q in zip(w, rights, strict=True))
        return p @ self.bases[k].T, [p @ q.T for q in rights]

    def mean(self, xs: list[Any], weights: list[float]) -> list[np.ndarray[Any, Any]]:
        """Take a mean; return what each rank has sent."""
        deltas = [x + residual for x, residual in zip(xs, self.residuals, strict=True)]
        tensors = [*zip(*map(matrices, deltas), strict=True)]
        found = [self.tensor(k, [*t], [w / sum(weights) for w in weights]) for k, t in enumerate(tensors)]
        sent = [np.concatenate([given[i].reshape(-1) for _, given in found]) for i in range(3)]
        for i in np.flatnonzero(weights):
            self.residuals[i] = deltas[i] - sent[i]
        before = self.reference
        self.reference = before + np.concatenate([mean.reshape(-1) for mean, _ in found])
        return [before + mine for mine in sent]


def test_a_mean_is_one_power_iteration_from_the_last_directions() -> None:
    weights = [[1.0, 1.0, 1.0], [1.0, 0.5, 0.0], [2.0, 1.0, 1.0]]
    found, model = simulate(lambda comm: play(comm, weights), 3), Model(_start())
    for r, row in enumerate(weights):
        expected = model.mean([vectors(r, i) for i in range(3)], row)
        for i, (mean, total, sent, state) in enumerate(mine[r] for mine in found):
            assert np.allclose(mean, model.reference, atol=1e-4)
            assert total == sum(row)
            assert not row[i] or np.allclose(sent, expected[i], atol=1e-4)
            assert np.allclose(state[1], model.residuals[i], atol=1e-4)
            assert same([mean, state[2]], [found[0][r][0], found[0][r][3][2]]), "the ranks disagree"


def _start() -> dict[int, np.ndarray[Any, Any]]:
    """Return the first directions."""
    state = Coded(simulate(lambda comm: comm, 2)[0], LowRank(RANK), torch.zeros(P), shapes=SHAPES).state
    basis = state[2].double().numpy()
    return {0: basis[: 9 * RANK].reshape(9, RANK), 2: basis[9 * RANK :].reshape(15, RANK)}


def steady(comm: Comm, rank: int, drift: bool) -> list[Tensor]:
    """Move by the same matrix in each round, of rank 2 or full; return what has been delivered."""
    source = np.random.default_rng(0)
    step = source.normal(size=(20, 2)) @ source.normal(size=(2, 30)) if not drift else source.normal(size=(20, 30))
    coded = Coded(comm, LowRank(rank), torch.zeros(600), shapes=[(20, 30)])
    found = []
    for _ in range(40):
        mean, _ = coded.mean(coded.state[0] + torch.from_numpy(step).float().view(-1))
        coded.commit(mean)
        found.append(mean.clone() - (len(found) + 1) * torch.from_numpy(step).float().view(-1))
    return found


def test_a_matrix_of_that_rank_arrives_whole() -> None:
    for lag in simulate(lambda comm: steady(comm, 2, False), 2)[0]:
        assert lag.abs().max() < 1e-3


def test_what_is_held_back_does_not_grow() -> None:
    lags = [float(lag.norm()) for lag in simulate(lambda comm: steady(comm, 4, True), 2)[0]]
    assert max(lags[20:]) < 1.5 * max(lags[:20])


def quiet(comm: Comm) -> float:
    """A round in which nothing has moved, then one in which something has."""
    coded = Coded(comm, LowRank(1), torch.zeros(600), shapes=[(20, 30)])
    coded.commit(coded.mean(torch.zeros(600))[0])
    x = torch.ones(600)
    return float((coded.mean(x)[0] - x).abs().max())


def test_directions_survive_a_round_without_a_difference() -> None:
    assert simulate(quiet, 2)[0] < 1e-5


def traffic(comm: Comm) -> list[int]:
    metered = Metered(comm)
    coded = Coded(metered, LowRank(RANK), torch.zeros(P), shapes=SHAPES)
    found, x = [], torch.ones(P)
    for call in (lambda: coded.mean(x), lambda: coded.gather(x), lambda: coded.permute(x, [1, 2, 0])):
        with metered.counting() as moved:
            call()
        found.append(moved.sent)
    return found


def test_bytes_are_those_of_the_formula() -> None:
    s = RANK * (12 + 9 + 4 + 15) + 9 + 6
    mean = sum(found[0] for found in simulate(traffic, 3)) / 3
    assert mean == pytest.approx(8 * 2 / 3 * (s + 2))
    assert [found[1:] for found in simulate(traffic, 3)] == [[2 * 4 * s, 4 * s]] * 3


def other_verbs(comm: Comm) -> list[Tensor]:
    source = np.random.default_rng(comm.rank)
    low = (source.normal(size=(12, 2)) @ source.normal(size=(2, 9))).reshape(-1)
    x = torch.from_numpy(np.concatenate([low, source.normal(size=9)])).float()
    coded = Coded(comm, LowRank(RANK), torch.zeros(117), shapes=[(12, 9), (9,)])
    rows = coded.all_to_all(x.expand(3, -1).contiguous())
    return [x, *coded.gather(x), coded.broadcast(x, 1), coded.permute(x, [1, 2, 0]), *rows]


def test_other_verbs_send_a_pair_of_factors() -> None:
    found = simulate(other_verbs, 3)
    xs = [mine[0] for mine in found]
    for rank, mine in enumerate(found):
        expected = [*xs, xs[1], xs[(rank + 1) % 3], *xs]
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(mine[1:], expected, strict=True))


def test_the_columns_are_orthonormal_or_zero() -> None:
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    q = _orthogonal(torch.cat([x, x[:, :1] * 2], 1))
    assert torch.allclose(q.t() @ q, torch.diag(torch.tensor([1.0, 1.0, 1.0, 0.0])), atol=1e-5)
    for n in (1, 2, 3, 7, 100):
        assert float(ordered_sum(torch.ones(n))) == n


def refused(comm: Comm) -> None:
    with pytest.raises(UsageError, match="rank: expected at least 1, found 0"):
        LowRank(0)
    with pytest.raises(UsageError, match="needs a reference"):
        Coded(comm, LowRank(1), torch.zeros(4), referenced=False)
    with pytest.raises(UsageError, match="shapes of 3 elements for a vector of 4"):
        Coded(comm, LowRank(1), torch.zeros(4), shapes=[(3,)])
    coded = Coded(comm, LowRank(1), torch.zeros(4))
    with pytest.raises(UsageError, match="expected 4 elements"):
        coded.commit(torch.zeros(1))
    with pytest.raises(CommError, match="weight 0"):
        coded.mean(torch.ones(4), 0.0)


def test_misuse_is_named() -> None:
    simulate(refused, 2)
