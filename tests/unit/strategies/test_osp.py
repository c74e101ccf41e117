"""OSP against its equation, against synchronous training, and where both are known to be equal."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from helpers import Trainer, run, same
from swarmstep import OSP, Comm, Int8, Options, Strategy, Synchronizer, Synchronous, simulate
from swarmstep.errors import CommError, UsageError
from swarmstep.strategies.osp import PIECE
from wrapped import Wrapped

Array = NDArray[np.float64]
SIZES = (3, 2, 4, 1, 5)  # of the tensors
WORKERS = 4
SHARES = (0.25, 0.5, 0.8, 1.0)


class Tensors(nn.Module):
    def __init__(self, start: Array) -> None:
        super().__init__()
        parts = torch.tensor(start).split(SIZES)
        self.parts = nn.ParameterList([nn.Parameter(part.clone()) for part in parts])


class Problem(NamedTuple):
    """Worker i at step t loses sum_k a_k x_k^2 / 2 - b_itk x_k: the same curvature for all."""

    start: Array  # [P]
    a: Array  # [P]
    b: Array  # [T, W, P]
    rates: Array  # [T]
    weights: Array  # [T, W]


def problem(seed: int = 0, steps: int = 8, least: float = 0.1, most: float = 0.6) -> Problem:
    rng = np.random.default_rng(seed)
    P = sum(SIZES)
    return Problem(
        start=rng.normal(size=P),
        a=rng.uniform(0.2, 1.0, P),
        b=rng.normal(size=(steps, WORKERS, P)),
        rates=rng.uniform(least, most, steps),
        weights=np.ones((steps, WORKERS)),
    )


class Descent(NamedTuple):
    """Weights of each worker after each step [T, W, P], results [W, P], what the next step defers [T, K]."""

    x: Array
    results: Array
    deferred: NDArray[np.bool_]


def descend(
    p: Problem, strategy: Strategy, momentum: float = 0.0, tell: bool = True, look: bool = False
) -> Descent:
    def train(comm: Comm) -> tuple[Array, Array, Any]:
        model = Tensors(p.start)
        sync = Synchronizer(model, strategy, comm)
        optimizer = torch.optim.SGD(model.parameters(), momentum=momentum)
        seen, deferred = [], []
        for t, rate in enumerate(p.rates):
            optimizer.param_groups[0]["lr"] = rate
            x = torch.cat([*model.parts])
            loss = (torch.tensor(p.a) * x * x / 2 - torch.tensor(p.b[t, comm.rank]) * x).sum()
            optimizer.zero_grad()
            loss.backward()
            lr, weight = rate if tell else None, p.weights[t, comm.rank]
            sync.reduce(lr, weight)
            optimizer.step()
            sync.step(loss, lr, weight)
            seen.append(torch.cat([*model.parts]).detach().numpy().copy())
            if look:
                sync.state_dict()  # waits for what is under way
                deferred.append(sync.states[0].deferred.numpy().copy())
        sync.finish()
        return np.array(seen), torch.cat([*model.parts]).detach().numpy().copy(), np.array(deferred)

    x, results, deferred = zip(*simulate(train, WORKERS), strict=True)
    assert all(np.array_equal(other, deferred[0]) for other in deferred)
    return Descent(np.stack(x, 1), np.stack(results), deferred[0])


def tensors(v: Array) -> list[Array]:
    return np.split(v, np.cumsum(SIZES)[:-1])


def least_important(scores: Array, share: float) -> NDArray[np.bool_]:
    """The tensors with the smallest scores that fit into the share, in their order."""
    chosen, room = np.zeros(len(SIZES), bool), share * sum(SIZES)
    for k in np.argsort(scores, kind="stable"):
        if SIZES[k] <= room:
            chosen[k] = True
            room -= SIZES[k]
    return chosen


def oracle(p: Problem, share: float, local: bool) -> Descent:
    """The rule, in weights: own gradients at once, and lr (g - m) one step later."""
    steps, workers, P = p.b.shape
    x, owed = np.tile(p.start, (workers, 1)), np.zeros((workers, P))
    deferred, seen, chosen = np.zeros(len(SIZES), bool), [], []
    for t in range(steps):
        g = p.a * x - p.b[t]
        m = np.average(g, axis=0, weights=p.weights[t])
        late = np.repeat(deferred, SIZES)
        scores = np.mean([[np.abs(part).sum() for part in tensors(row)] for row in x * g], 0)
        landed = owed if local else p.rates[t] * owed
        x = x - p.rates[t] * np.where(late, g if local else 0.0, m) - landed
        owed = np.where(late, p.rates[t] * (m - g) if local else m, 0.0)
        deferred = least_important(scores, share)
        seen.append(x)
        chosen.append(deferred)
    result = np.average(x, axis=0, weights=p.weights[-1])
    return Descent(np.array(seen), np.tile(result, (workers, 1)), np.array(chosen))


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("share", SHARES)
def test_it_is_the_equation(share: float, local: bool) -> None:
    p = problem()
    p = p._replace(weights=np.random.default_rng(5).integers(1, 9, p.weights.shape).astype(float))
    found, expected = descend(p, OSP(share, local=local), look=True), oracle(p, share, local)
    assert (found.deferred == expected.deferred).all()
    assert 0 < found.deferred.mean() <= 1
    np.testing.assert_allclose(found.x, expected.x, atol=1e-13)
    np.testing.assert_allclose(found.results, expected.results, atol=1e-13)


def test_important_tensors_are_urgent_and_what_is_deferred_changes() -> None:
    deferred = descend(problem(steps=20), OSP(0.5), look=True).deferred
    assert (deferred @ np.array(SIZES) <= 0.5 * sum(SIZES)).all()
    assert len({tuple(row) for row in deferred.tolist()}) > 1


def test_with_nothing_deferred_it_is_synchronous_bit_for_bit() -> None:
    p = problem()
    found, expected = descend(p, OSP(0.0)), descend(p, Synchronous())
    assert np.array_equal(found.x, expected.x)
    assert np.array_equal(found.results, expected.results)


@pytest.mark.filterwarnings("ignore:.*have reported equal losses")
@settings(deadline=None, max_examples=4)
@given(st.sampled_from(SHARES), st.sampled_from([0.0, 0.9]), st.integers(0, 99))
def test_equal_data_make_it_synchronous(share: float, momentum: float, seed: int) -> None:
    p = problem(seed)
    p = p._replace(b=np.repeat(p.b[:, :1], WORKERS, axis=1))
    found, expected = (descend(p, s, momentum).x for s in (OSP(share), Synchronous()))
    np.testing.assert_allclose(found, expected, atol=1e-13)


@settings(deadline=None, max_examples=6)
@given(st.sampled_from(SHARES), st.sampled_from([0.0, 0.9]), st.booleans(), st.integers(0, 99))
def test_the_mean_is_synchronous_descent(share: float, momentum: float, tell: bool, seed: int) -> None:
    """For losses of the same curvature, every share and any course of the learning rate, told or not."""
    p = problem(seed, least=0.0, most=0.9)
    found, expected = (descend(p, s, momentum, tell) for s in (OSP(share), Synchronous()))
    np.testing.assert_allclose(found.x.mean(1), expected.x.mean(1), atol=1e-12)
    np.testing.assert_allclose(found.results, expected.results, atol=1e-12)


def test_a_mean_one_step_late_is_not() -> None:
    p = problem()
    found, expected = (descend(p, s).x for s in (OSP(0.8, local=False), Synchronous()))
    assert (np.abs(found - found[:, :1]) < 1e-13).all()  # the workers are equal
    assert np.abs(found.mean(1) - expected.mean(1)).max() > 0.1


def test_workers_differ_by_their_own_part_of_one_step() -> None:
    """x_i - mean = lr (m - g_i) of the last step in what was deferred, and 0 elsewhere, whatever lr was before."""
    p = problem(steps=10)
    found = descend(p, OSP(0.8), look=True)
    for t in range(1, 10):
        g = p.a * found.x[t - 1] - p.b[t]
        late = np.repeat(found.deferred[t - 1], SIZES)
        spread = np.where(late, p.rates[t] * (g.mean(0) - g), 0.0)
        np.testing.assert_allclose(found.x[t] - found.x[t].mean(0), spread, atol=1e-13)


@pytest.mark.parametrize(("rate", "stable"), [(0.9, True), (1.1, False)])
def test_it_bears_half_of_the_rate_of_synchronous_training(rate: float, stable: bool) -> None:
    """The spread is multiplied by -lr a: curvature 1, so that synchronous training bears a rate below 2."""
    p = problem(steps=30)
    p = p._replace(a=np.ones_like(p.a), b=np.repeat(p.b[:1], 30, axis=0), rates=np.full(30, rate))
    x = descend(p, OSP(1.0)).x
    spread = x - x.mean(1, keepdims=True)
    changes = np.abs(np.diff(spread, axis=0)).max((1, 2))
    assert (changes[-1] < 0.3 * changes[10]) == stable
    assert stable or changes[-1] > 3 * changes[10]
    assert np.isfinite(descend(p, Synchronous()).x).all()


def test_large_tensors_are_cut_so_that_a_share_can_be_met() -> None:
    def train(comm: Comm) -> list[int]:
        model = nn.Linear(PIECE + 10, 2, bias=False)
        sync = Synchronizer(model, OSP(0.51), comm)
        model(torch.ones(1, PIECE + 10)).sum().backward()
        sync.reduce(0.1)
        sync.step(1.0)
        sync.state_dict()
        return sync.states[0].deferred.tolist()

    assert simulate(train, 2)[0].count(True) == 2  # of 65,536, 65,536 and 20: the last, and one of the others


def test_auto_defers_what_the_network_carries_during_a_step() -> None:
    osp = OSP(0.8, auto=True)

    def share(element: float, step: float, loss: float, first: float) -> float:
        return osp._share(torch.tensor([element, step, loss, first, 7.0], dtype=torch.float64), 1000)

    assert share(0.01, 1.0, 0.1, 1.0) == pytest.approx(0.1)  # 100 of 1000 elements fit into a second
    assert share(1e-6, 1.0, 0.25, 1.0) == pytest.approx(0.6)  # the loss has lost three quarters
    assert share(1e-6, 1.0, 0.0, 1.0) == 0.8
    assert share(1e-6, 1.0, 2.0, 1.0) == 0.0
    assert share(0.0, 1.0, 0.1, 1.0) == share(1e-6, 1.0, 0.1, 0.0) == share(1e-6, 1.0, -0.1, -1.0) == 0.0
    p = problem()
    p = p._replace(b=np.repeat(p.b[:1], 8, axis=0))
    found = descend(p, osp)
    np.testing.assert_allclose(found.x.mean(1), descend(p, Synchronous()).x.mean(1), atol=1e-12)


@pytest.mark.parametrize(("given", "codec"), [(OSP(0.8), Int8(16)), (OSP(0.8, local=False), None)])
def test_resumed_at_every_step_equals_uninterrupted_bitwise(given: OSP, codec: Any) -> None:
    whole, resumed = (
        simulate(lambda comm, r=r: run(comm, given, 7, r, codec=codec)[:4], 3) for r in (False, True)
    )
    assert same(whole, resumed)


def test_rounds_report_what_travelled_since_the_one_before() -> None:
    """A round and what follows it send each element once, and the scores; so do resumed ones."""

    def train(comm: Comm, resume: bool) -> list[Any]:
        trainer, seen = Trainer(OSP(0.8), comm), []
        for _ in range(5):
            landed = trainer.step()
            seen.append((landed.bytes_sent, landed.calls, landed.followed))
            if resume:
                saved = trainer.save()
                trainer = Trainer(OSP(0.8), comm)
                trainer.load(saved)
        return seen

    found, resumed = (simulate(lambda comm, r=r: train(comm, r), 2) for r in (False, True))
    assert found == resumed
    parameters, pieces, roll = 5 * 8 + 8 + 8 + 8 + 8 * 3 + 3, 6, 56
    for (_, calls, _), (_, _, followed) in pairwise(found[0]):
        assert sum(size for _, size, _ in (*calls, *followed)) == roll + 4 * parameters + 8 * pieces


class Breaking(Wrapped):
    """A group in which the averaging of the scores fails."""

    def before(self, verb: str, elements: int) -> None:
        if verb == "mean" and elements == len(SIZES):
            raise CommError("the network is gone")

    def split(self, color: int, name: str = "") -> Any:
        return Breaking(self.inner.split(color, name))


def test_what_fails_in_the_background_is_said_at_the_next_step_and_again() -> None:
    def train(comm: Any) -> None:
        model = Tensors(problem().start)
        sync = Synchronizer(model, OSP(), Breaking(comm))
        sync.reduce()
        sync.step(1.0)
        for _ in range(2):
            with pytest.raises(CommError, match="step 2: the network is gone"):
                sync.reduce()
        with pytest.raises(CommError, match="the network is gone"):
            sync.state_dict()

    simulate(train, 1)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_out_of_range_is_named(share: float) -> None:
    with pytest.raises(UsageError, match="share: expected 0 to 1"):
        OSP(share)


@pytest.mark.parametrize("given", [{"delay": 2}, {"mix": 0.5}, {"fragments": 2}])
def test_what_does_not_go_with_gradients_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="OSP synchronizes gradients"):
        simulate(lambda comm: Synchronizer(Tensors(problem().start), OSP(), comm, Options(**given)), 1)
