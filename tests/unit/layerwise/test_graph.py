"""Mixing with neighbours: the matrix, the permutations that carry it out, and how soon all have the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep import simulate
from swarmstep.errors import UsageError
from swarmstep.layerwise import Graph, complete, parse, ring


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any connected graph of up to 7 workers: a random tree, and more edges."""
    size = draw(st.integers(1, 7))
    edges = {(draw(st.integers(0, i - 1)), i) for i in range(1, size)}
    others = st.tuples(st.integers(0, size - 1), st.integers(0, size - 1))
    edges |= {(i, j) for i, j in draw(st.lists(others, max_size=8)) if i < j}
    return Graph(size, tuple(sorted(edges)))


@given(graph=graphs())
def test_the_mixing_matrix_is_doubly_stochastic_and_permutations_carry_it_out(graph: Graph) -> None:
    h = graph.weights.numpy()
    np.testing.assert_allclose(h.sum(0), 1, atol=1e-15)
    np.testing.assert_array_equal(h, h.T)
    assert h.min() >= -1e-16
    linked = {frozenset(edge) for edge in graph.edges}
    assert all((h[i, j] > 0) == (frozenset((i, j)) in linked) for i in range(len(h)) for j in range(i))
    x = torch.randn(graph.size, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.stack(simulate(lambda comm: graph.mix(x[comm.rank], comm), graph.size))
    np.testing.assert_allclose(found, np.einsum("ij,jkl->ikl", h, x.numpy()), atol=1e-14)


@given(graph=graphs(), mixing=st.sampled_from(["finite", "repeated"]))
def test_all_learn_the_mean(graph: Graph, mixing: str) -> None:
    x = torch.randn(graph.size, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.stack(simulate(lambda comm: graph.average(x[comm.rank], comm, mixing), graph.size))
    np.testing.assert_allclose(found, x.mean(0).expand_as(x), atol=1e-11)


@pytest.mark.parametrize(("size", "degree"), [(5, 2), (20, 2), (20, 4), (21, 8), (100, 2)])
def test_a_ring_needs_half_its_size_in_mixings_and_many_more_by_plain_mixing(size: int, degree: int) -> None:
    graph = ring(size, degree)
    assert np.count_nonzero(graph.weights.numpy(), axis=1).tolist() == [degree + 1] * size
    assert len(graph.shifts()) <= size // 2
    around = 2 * np.pi * np.arange(1, size) / size
    values = (1 + 2 * sum(np.cos(k * around) for k in range(1, degree // 2 + 1))) / (degree + 1)
    slowest = np.abs(values).max()  # of H but for the 1, as for any circulant matrix
    assert slowest ** len(graph.shifts("repeated")) <= 1e-13 < slowest ** (len(graph.shifts("repeated")) - 1)


def test_the_complete_graph_is_one_mean() -> None:
    graph = parse("complete", 4)
    assert graph == complete(4)
    np.testing.assert_allclose(graph.weights, 0.25)

    def work(comm: object) -> list[torch.Tensor]:
        x = torch.tensor([1.0, comm.rank], dtype=torch.float64)  # type: ignore[attr-defined]
        return [graph.average(x, comm), comm.mean(x)[0]]  # type: ignore[attr-defined,arg-type]

    assert all(torch.equal(*pair) for pair in simulate(work, 4))


@pytest.mark.parametrize(
    ("spec", "size", "said"),
    [
        ("ring:3", 8, "ring:3: expected an even degree from 2 to 7 with 8 workers"),
        ("ring:8", 8, "ring:8: expected an even degree from 2 to 7"),
        ("ring:2", 2, "fewer than 3 workers take complete"),
        ("ring:", 8, "unknown graph 'ring:'; expected one of ring, ring:DEGREE, exponential"),
        ("pairs", 8, "unknown graph 'pairs'"),
    ],
)
def test_a_text_that_is_no_graph_of_so_many_workers(spec: str, size: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(spec, size)


@pytest.mark.parametrize("name", ["ring", "exponential", "hypercube", "torus", "complete"])
def test_a_name_is_a_graph_of_any_number_of_workers(name: str) -> None:
    most = {"ring": 2, "torus": 4, "hypercube": 4, "exponential": 8}.get(name, 99)  # neighbours, up to 16 workers
    for size in (*range(1, 10), 12, 16):
        graph = parse(name, size)  # which raises where one cannot be reached
        assert graph.size == size
        assert np.count_nonzero(graph.weights.numpy() - np.diag(np.diag(graph.weights)), axis=1).max() <= most
    assert len(parse("torus", 12).edges) == 2 * 12  # 3 x 4
    assert parse("hypercube", 4).edges == ((0, 1), (0, 2), (1, 3), (2, 3))
    assert parse("torus", 7) == parse("ring", 7) == ring(7)


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        (((0, 1), (2, 3)), "worker 2 cannot be reached from worker 0"),
        (((0, 1), (1, 0), (1, 2), (2, 3)), "each edge once"),
        (((0, 0),), "between two of 0..3, found"),
        (((0, 4),), "between two of 0..3, found"),
    ],
)
def test_edges_that_make_no_graph(edges: tuple[tuple[int, int], ...], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Graph(4, edges)


def test_an_unknown_mixing() -> None:
    with pytest.raises(UsageError, match="mixing: expected one of finite, repeated, found 'slow'"):
        ring(5).shifts("slow")
