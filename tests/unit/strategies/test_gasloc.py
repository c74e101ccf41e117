"""GASLoC against its equations, and the methods it holds as limits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rounds import Array, Game, game, play
from swarmstep import DiLoCo, Every, GASLoC, GossipRing, NoLoCo, Options, Strategy, Synchronizer, simulate
from swarmstep.comm.codecs import TopK
from swarmstep.errors import UsageError
from swarmstep.runtime.startup_checks import check_elastic
from swarmstep.strategies.parts.named_graphs import complete, graph_of_round, pairs, ring

Neighbours = Callable[[int, int], set[int]]  # (rank, size)


def apart(*distances: int) -> Neighbours:
    return lambda i, size: {(i + d) % size for d in (*distances, *(-d for d in distances))} - {i}


# Written from the names, with other expressions than the graphs have.
GRAPHS: dict[str, Neighbours] = {
    "ring": apart(1),
    "ring:4": apart(1, 2),
    "exponential": lambda i, size: {j for j in range(size) if {(i - j) % size, (j - i) % size} & {1, 2, 4, 8}},
    "hypercube": lambda i, size: {j for j in range(size) if (i ^ j).bit_count() == 1},
    "complete": lambda i, size: {*range(size)} - {i},
    "none": lambda i, size: set(),
}


def matrix(neighbours: list[set[int]], here: list[int]) -> Array:
    """The mixing matrix: weights of Metropolis and Hastings; absent workers give nothing, and take the others'."""
    size = len(neighbours)
    if all(len(near) == size - 1 for near in neighbours):  # all take the mean of those that are there
        return np.tile(np.isin(np.arange(size), here) / len(here), (size, 1))
    H = np.zeros((size, size))
    for i, near in enumerate(neighbours):
        for j in near:
            H[i, j] = 1 / (1 + max(len(near), len(neighbours[j])))
    H += np.diag(1 - H.sum(axis=1))
    M = np.zeros_like(H)
    for i in range(size):
        M[i, here] = H[i, here]
        if i in here:
            M[i, i] += 1 - M[i].sum()
        elif M[i].sum():
            M[i] /= M[i].sum()
        else:
            M[i, i] = 1
    return M


def linked(graph: str, size: int, step: int) -> list[set[int]]:
    if graph == "pairs":
        return [{j} - {i} for i, j in enumerate(pairs(0, step, size))]
    return [GRAPHS[graph](i, size) for i in range(size)]


def oracle(g: Game, s: float, w: float, graph: str, a: float = 1.0, overlapped: str = "") -> Array:
    n, count = len(g.start) - g.buffers, g.workers
    x = np.tile(g.start, (count, 1))
    anchor, previous, history = x.copy(), x.copy(), []
    for r, drift in enumerate(g.drift):
        here = [i for i in range(count) if not g.absent(r, i)]
        x[here] += drift[here]
        base = anchor
        if overlapped and r:  # nothing travels before the first round, where all are equal anyway
            base = matrix(linked(overlapped, count, 0), [*range(count)]) @ anchor
        y = base - s * (anchor - x)
        y[:, n:] = x[:, n:]
        y += a * (matrix(linked(graph, count, r + 1), here) @ y - y)
        anchor = y.copy()
        anchor[:, :n] += w * (y - previous)[:, :n]
        previous, x = y, anchor.copy()
        history.append(x.copy())
    return np.stack(history)


@pytest.mark.parametrize("workers", [1, 2, 4, 5])
@pytest.mark.parametrize("graph", ["pairs", "ring", "exponential", "hypercube", "complete"])
def test_oracle(workers: int, graph: str) -> None:
    g = game(workers, buffers=2)
    expected = oracle(g, 0.7, 0.6, graph)
    played = play(GASLoC(graph=graph), g)
    np.testing.assert_allclose(played.weights, expected, atol=1e-12)
    np.testing.assert_allclose(played.results[0], expected[-1].mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("graph", ["pairs", "ring:4", "complete"])
def test_a_step_along_the_laplacian_and_workers_that_have_finished(graph: str) -> None:
    g = game(6, finished={1: 1, 2: 3, 5: 2}, buffers=1)
    expected = oracle(g, 0.9, 0.5, graph, 0.4)
    np.testing.assert_allclose(play(GASLoC(0.9, 0.5, graph, 0.4), g).weights, expected, atol=1e-12)


@pytest.mark.parametrize("graph", ["ring", "none"])
@pytest.mark.parametrize("overlapped", ["ring", "exponential", "complete"])
def test_factored_into_an_overlapped_and_a_blocking_mix(overlapped: str, graph: str) -> None:
    g = game(5, buffers=2)
    expected = oracle(g, 0.7, 0.6, graph, overlapped=overlapped)
    played = play(GASLoC(graph=graph, overlapped=overlapped), g)
    np.testing.assert_allclose(played.weights, expected, atol=1e-12)


LIMITS: dict[str, tuple[Strategy, Strategy]] = {
    "DiLoCo on the complete graph": (GASLoC(0.7, 0.9, "complete"), DiLoCo(0.7, 0.9)),
    "DiLoCo, whatever is mixed beside": (GASLoC(0.7, 0.9, "complete", overlapped="ring"), DiLoCo(0.7, 0.9)),
    "gossip": (GASLoC(1.0, 0.0, "ring"), GossipRing()),
    "NoLoCo without its constants": (GASLoC(0.7, 0.0), NoLoCo(0.7, 0.0, 1.0)),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name: str) -> None:
    general, limit = LIMITS[name]
    g = game(6, buffers=2)
    np.testing.assert_allclose(play(general, g).weights, play(limit, g).weights, atol=1e-12)


@pytest.mark.parametrize("graph", ["pairs", "ring", "hypercube"])
def test_the_mean_moves_as_in_diloco_and_the_spread_shrinks_by_the_second_eigenvalue(graph: str) -> None:
    g = game(8)
    for overlapped in ("none", "exponential"):
        mean = play(GASLoC(0.7, 0.9, graph, overlapped=overlapped), g).weights.mean(axis=1)
        np.testing.assert_allclose(mean, play(DiLoCo(0.7, 0.9), g).weights[:, 0], atol=1e-12)
    g.drift[1:] = 0  # workers differ by the first round, and then only mix
    apart = play(GASLoC(1.0, 0.0, "ring"), g).weights
    spread = np.linalg.norm(apart - apart.mean(axis=1, keepdims=True), axis=(1, 2))
    second = (1 + 2 * np.cos(2 * np.pi / 8)) / 3  # of the ring of 8
    assert (spread[1:] <= second * spread[:-1] + 1e-12).all()


def test_traffic() -> None:
    assert (play(GASLoC(graph="ring"), game(6)).sent == 2 * 7 * 8).all()
    assert (play(GASLoC(graph="hypercube"), game(8)).sent == 3 * 7 * 8).all()


def test_the_overlapped_mix_is_counted_in_the_next_round() -> None:
    def train(comm: object) -> list[int]:
        model = torch.nn.Linear(3, 1)
        sync = Synchronizer(model, GASLoC(graph="ring", overlapped="hypercube", when=Every(2)), comm)  # type: ignore[arg-type]
        return [found.bytes_sent for _ in range(6) if (found := sync.step(1.0))]  # type: ignore[union-attr]

    first, *others = simulate(train, 8)[0]
    assert [sent - first for sent in others] == [3 * 4 * 4, 3 * 4 * 4]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"share": 1.5}, "share"),
        ({"graph": "star"}, "graph: expected one of none, pairs, ring"),
        ({"graph": "none"}, "expected one graph at least"),
        ({"overlapped": "pairs"}, "overlapped: expected one of none, ring"),
        ({"graph": "ring:3"}, "graph: expected one of none, pairs, ring"),
        ({"graph": "ring:0"}, "graph: expected one of none, pairs, ring"),
    ],
)
def test_ranges(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        GASLoC(**fields)  # type: ignore[arg-type]


def test_what_does_not_go_with_it_is_refused_before_the_first_step() -> None:
    def made(strategy: Strategy, options: Options) -> None:
        simulate(lambda comm: Synchronizer(torch.nn.Linear(3, 1), strategy, comm, options), 4)

    with pytest.raises(UsageError, match="fragments: GASLoC still sends after a round has landed"):
        made(GASLoC(overlapped="ring"), Options(fragments=2))
    with pytest.raises(UsageError, match="elastic group needs a round that is over when it lands"):
        check_elastic(GASLoC(overlapped="ring"), Options())
    with pytest.raises(UsageError, match="needs a reference"):
        made(GASLoC(), Options(codec=TopK(0.1)))


def test_a_ring_that_has_shrunk_is_complete() -> None:
    """In an elastic group fewer may be left than the degree needs: all are neighbours then."""
    assert graph_of_round("ring:4", 4, 0, 0) == complete(4)
    assert graph_of_round("ring:4", 1, 0, 0) == complete(1)
    assert graph_of_round("ring:4", 6, 0, 0) == ring(6, 4)
