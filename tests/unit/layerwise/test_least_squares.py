"""One layer: the closed form against its conditions, and consensus ADMM against the closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep import simulate
from swarmstep.layerwise import Admm, Ball, Ridge, closed_form, complete, ring
from swarmstep.layerwise.least_squares import exact

Array = np.ndarray[Any, Any]
SIZES = (4, 9, 0, 14, 3)  # examples of each worker
Q, N = 2, 6


def problem(seed: int = 0, columns: int = N) -> tuple[list[Array], list[Array]]:
    """Return each worker's Y_m [J_m, n] and T_m [J_m, Q], scaled unlike."""
    source = np.random.default_rng(seed)
    ys = [source.normal(size=(j, columns)) * (1 + m) for m, j in enumerate(SIZES)]
    return ys, [source.normal(size=(j, Q)) for j in SIZES]


def sums(ys: list[Array], ts: list[Array]) -> tuple[Array, Array]:
    return sum(y.T @ y for y in ys), sum(t.T @ y for y, t in zip(ys, ts, strict=True))


def solved(ys: list[Array], ts: list[Array], limit: Ball | Ridge) -> Array:
    return closed_form(*map(torch.tensor, sums(ys, ts)), limit).numpy()  # type: ignore[arg-type]


def by_bisection(ys: list[Array], ts: list[Array], radius: float) -> Array:
    """O = C (G + lam I)^-1 with the least lam >= 0 for which |O| <= radius."""
    gram, cross = sums(ys, ts)

    def at(lam: float) -> Array:
        return cross @ np.linalg.inv(gram + lam * np.eye(len(gram)))

    if np.linalg.norm(at(0.0)) <= radius:
        return at(0.0)
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.linalg.norm(at(middle)) > radius else (low, middle)
    return at(high)


@given(seed=st.integers(0, 99), radius=st.sampled_from([0.01, 0.1, 0.2, 5.0]))
def test_the_closed_form_is_on_the_ball_or_free(seed: int, radius: float) -> None:
    ys, ts = problem(seed)
    found = solved(ys, ts, Ball(radius))
    np.testing.assert_allclose(found, by_bisection(ys, ts, radius), rtol=1e-9, atol=1e-12)
    assert np.linalg.norm(found) <= radius * (1 + 1e-12)


def test_more_columns_than_examples_give_the_shortest_solution() -> None:
    ys, ts = problem(columns=40)
    expected = np.linalg.lstsq(np.concatenate(ys), np.concatenate(ts), rcond=None)[0].T
    np.testing.assert_allclose(solved(ys, ts, Ball(100.0)), expected, rtol=1e-9, atol=1e-12)


def test_examples_that_are_all_zero_give_zero() -> None:
    assert not closed_form(torch.zeros(3, 3).double(), torch.zeros(2, 3).double(), Ball(1.0)).any()


def test_ridge_is_what_the_equation_says() -> None:
    ys, ts = problem()
    gram, cross = sums(ys, ts)
    np.testing.assert_allclose(solved(ys, ts, Ridge(3.0)), cross @ np.linalg.inv(gram + 3 * np.eye(N)), rtol=1e-10)


def each(ys: list[Array], ts: list[Array], admm: Admm, limit: Ball | Ridge, graph: Any) -> list[Any]:
    def work(comm: Any) -> Any:
        y, t = torch.tensor(ys[comm.rank]), torch.tensor(ts[comm.rank])
        return admm.solve(y.T @ y, t.T @ y, limit, comm, lambda x: graph.average(x, comm))

    return simulate(work, len(SIZES))


@pytest.mark.parametrize("limit", [Ball(0.15), Ball(50.0), Ridge(2.0)], ids=str)
@pytest.mark.parametrize("graph", [ring(5, 2), complete(5)], ids=["ring", "complete"])
def test_admm_among_neighbours_finds_the_central_solution(limit: Ball | Ridge, graph: Any) -> None:
    """Shards of 0 to 14 examples, most with fewer than there are columns."""
    ys, ts = problem()
    expected = solved(ys, ts, limit)
    for solution in each(ys, ts, Admm(4000, 1e-13, 0.0), limit, graph):
        assert solution.residual <= 1e-13
        np.testing.assert_allclose(solution.output, expected, rtol=0, atol=1e-10 * np.abs(expected).max())


@pytest.mark.parametrize("limit", [Ball(0.15), Ridge(2.0)], ids=str)
def test_admm_with_a_given_mu_is_the_plain_algorithm(limit: Ball | Ridge) -> None:
    (ys, ts), mu = problem(), 0.05
    z, duals = np.zeros((Q, N)), [np.zeros((Q, N)) for _ in SIZES]
    for _ in range(7):
        owns = [
            (t.T @ y + (z - dual) / mu) @ np.linalg.inv(y.T @ y + np.eye(N) / mu)
            for y, t, dual in zip(ys, ts, duals, strict=True)
        ]
        mean = sum(own + dual for own, dual in zip(owns, duals, strict=True)) / len(SIZES)
        if isinstance(limit, Ball):
            z = mean * min(1, limit.radius / np.linalg.norm(mean))
        else:  # the minimum of lam |Z|^2 + sum_m |Z - (O_m + L_m)|^2 / mu
            z = mean * (len(SIZES) / mu) / (limit.lam + len(SIZES) / mu)
        duals = [dual + own - z for dual, own in zip(duals, owns, strict=True)]
    for solution in each(ys, ts, Admm(7, 0.0, mu), limit, complete(5)):
        assert solution.iterations == 7
        np.testing.assert_allclose(solution.output, z, rtol=1e-10, atol=1e-14)


def test_gram_matrices_give_all_ranks_the_bits_of_the_closed_form() -> None:
    ys, ts = problem()

    def work(comm: Any) -> Any:
        y, t = torch.tensor(ys[comm.rank]), torch.tensor(ts[comm.rank])
        return exact(y.T @ y, t.T @ y, Ball(0.15), comm).output

    found = simulate(work, len(SIZES))
    assert all(torch.equal(output, found[0]) for output in found)
    np.testing.assert_allclose(found[0], solved(ys, ts, Ball(0.15)), rtol=1e-10)
