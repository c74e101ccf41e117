"""A network that grows: its cost, its layers, and that it does not matter where the examples are."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from swarmstep import simulate
from swarmstep.errors import CheckpointError, Disagreement, NotFinite, UsageError
from swarmstep.layerwise import SSFN, Builder, Graph, SSFNSettings, complete, fit, ring
from swarmstep.layerwise.network import hidden

SETTINGS = SSFNSettings(layers=3, width=12, deeper=0.0, ridge=1.0)
CUTS = (0, 7, 7, 40, 90)  # 4 workers, one of which has nothing


def data() -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(90, 5, generator=source)
    return x, one_hot((x[:, 0] * x[:, 1] > 0).long() + (x[:, 2] > 0.5), 3)


def grown(workers: int, settings: SSFNSettings = SETTINGS, graph: Graph | None = None) -> list[Builder]:
    """Return each worker's builder at the end."""
    x, t = data()

    def work(comm: Any) -> Builder:
        own = slice(CUTS[comm.rank], CUTS[comm.rank + 1]) if workers == 4 else slice(None)
        builder = Builder(settings, x[own], t[own], comm, graph)
        while not builder.done:
            builder.add()
        return builder

    return simulate(work, workers)


def test_the_cost_never_rises_with_depth_and_the_norm_is_kept() -> None:
    (builder,) = grown(1, dataclasses.replace(SETTINGS, layers=6))
    costs = [layer.cost for layer in builder.layers]
    assert costs == sorted(costs, reverse=True)
    assert len({*costs}) == 7
    for output in builder.network().learned[1:]:
        assert output.norm() <= 2 * math.sqrt(2 * 3) * (1 + 1e-12)


def test_a_layer_can_hand_on_what_the_one_before_it_has_found() -> None:
    """Why the cost cannot rise: [I, -I, 0] is in the ball, and relu(v) - relu(-v) = v."""
    source = torch.Generator().manual_seed(1)
    y, output = (torch.randn(*shape, dtype=torch.float64, generator=source) for shape in ((8, 5), (3, 5)))
    on = torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(3, 7)], 1).double()
    seen = hidden(y, output, torch.randn(7, 5, generator=source))
    torch.testing.assert_close(seen @ on.T, y @ output.T)
    assert on.norm() <= SETTINGS.alpha * math.sqrt(2 * 3)


def test_a_layer_sees_what_the_equation_says() -> None:
    source = np.random.default_rng(2)
    y, output, random = source.normal(size=(4, 5)), source.normal(size=(3, 5)), source.normal(size=(7, 5))
    drawn = random @ y.T
    z = np.concatenate([output @ y.T, -output @ y.T, drawn / np.linalg.norm(drawn, axis=0)])
    np.testing.assert_allclose(hidden(*map(torch.tensor, (y, output, random))), np.maximum(z, 0).T, rtol=1e-12)
    assert not hidden(torch.zeros(2, 5).double(), torch.tensor(output), torch.tensor(random)).any()


@pytest.mark.parametrize(
    ("graph", "within"),
    [(None, 1e-10), pytest.param(complete(4), 1e-7, marks=pytest.mark.slow), (ring(4, 2), 1e-7)],
    ids=["gram", "complete", "ring"],
)
def test_it_does_not_matter_where_the_examples_are(graph: Graph | None, within: float) -> None:
    """Claim of the paper: the result is that of central training; shards of 7, 0, 33 and 50 examples."""
    (central,) = grown(1)
    x, _ = data()
    for builder in grown(4, SETTINGS, graph):
        found, expected = builder.network()(x), central.network()(x)
        torch.testing.assert_close(found, expected, rtol=0, atol=within)
        for layer, alone in zip(builder.layers, central.layers, strict=True):
            assert layer.cost == pytest.approx(alone.cost, rel=within)


def test_the_network_is_a_module_that_says_what_the_builder_says() -> None:
    (builder,) = grown(1)
    network, (x, t) = builder.network(), data()
    torch.testing.assert_close(network(x.view(90, 5, 1)), builder.outputs_of_own(), rtol=1e-12, atol=1e-12)
    cost = (network(x) - t).square().sum().item()
    assert cost == pytest.approx(builder.layers[-1].cost, rel=1e-12)
    again = SSFN(5, 3, [12, 12, 12])
    again.load_state_dict(network.state_dict())
    assert torch.equal(again(x), network(x))
    assert all(not parameter.requires_grad for parameter in network.parameters())


def test_random_features_are_uniform_and_the_same_on_all_ranks() -> None:
    builders = grown(4, SETTINGS)
    for random in zip(*(builder.network().random for builder in builders), strict=True):
        assert all(torch.equal(one, random[0]) for one in random)
        assert -1 <= random[0].min() < -0.8 < 0.8 < random[0].max() < 1
    other = simulate(lambda comm: fit(SETTINGS, *data(), comm, seed=1), 1)[0]
    assert not torch.equal(other.random[0], builders[0].network().random[0])


def test_depth_ends_where_a_layer_gains_too_little() -> None:
    (deep,) = grown(1, dataclasses.replace(SETTINGS, layers=20))
    db = [layer.decibels for layer in deep.layers]
    gains = [(a - b) / abs(a) for a, b in itertools.pairwise(db)]
    (builder,) = grown(1, dataclasses.replace(SETTINGS, layers=20, deeper=0.1))
    expected = next(i for i, gain in enumerate(gains, start=1) if gain < 0.1)
    assert 1 < expected < 20
    assert [layer.decibels for layer in builder.layers] == db[: expected + 1]


def test_width_grows_while_it_gains_enough() -> None:
    (wide,) = grown(1, dataclasses.replace(SETTINGS, layers=1, width=40, grow=4, wider=0.0))
    assert wide.layers[1].nodes % 4 == 0
    (narrow,) = grown(1, dataclasses.replace(SETTINGS, layers=1, width=40, grow=4, wider=0.2))
    assert 4 <= narrow.layers[1].nodes < wide.layers[1].nodes
    (first,) = grown(1, dataclasses.replace(SETTINGS, layers=1, width=40, grow=4, wider=1e6))
    assert first.layers[1].nodes == 8  # the last ones that were tried stay, if they gain anything
    assert SSFNSettings(width=10, grow=4).sizes == [4, 8, 10]
    assert SSFNSettings(width=10).sizes == [10]


def test_what_is_sent_is_what_the_formulas_say() -> None:
    """W workers, Q outputs, n columns, b bytes: see docs/layerwise.md."""
    builder = grown(4)[1]
    n, q = 2 * 3 + 12, 3
    mean = 2 * 3 * (n * (n + 1) // 2 + q * n + 1) * 8 // 4
    assert abs(builder.layers[1].bytes_sent - (mean + q * n * 8 + 3 * 8)) <= 8  # a share is rounded
    settings = dataclasses.replace(SETTINGS, iterations=20, tolerance=0.0)
    ringed = grown(4, settings, ring(4, 2))[1]
    mixings = len(ring(4, 2).shifts())
    assert ringed.layers[1].iterations == 20
    controls = 3 * 8 + 2 * 3 * 40 + 3 * 8  # the mean eigenvalue, two looks, the cost
    assert ringed.layers[1].bytes_sent == 20 * mixings * 2 * q * n * 8 + controls


def test_who_runs_out_of_iterations_is_told() -> None:
    with pytest.warns(UserWarning, match="ADMM ended after its 20 iterations") as said:
        grown(4, dataclasses.replace(SETTINGS, iterations=20), ring(4, 2))
    assert [str(one.message)[:8] for one in said] == ["layer 0:", "layer 1:", "layer 2:", "layer 3:"]


@pytest.mark.parametrize("graph", [None, ring(4, 2)], ids=["gram", "ring"])
def test_a_resumed_network_has_the_same_bits(graph: Graph | None) -> None:
    x, t = data()
    settings = dataclasses.replace(SETTINGS, iterations=30, tolerance=0.0, grow=5)

    def work(comm: Any, stop: int) -> Builder:
        own = slice(CUTS[comm.rank], CUTS[comm.rank + 1])
        builder = Builder(settings, x[own], t[own], comm, graph)
        while not builder.done:
            if len(builder.layers) == stop:
                state, builder = builder.state_dict(), Builder(settings, x[own], t[own], comm, graph)
                builder.load_state_dict(state)
            builder.add()
            stop = 0
        return builder

    for whole, parts in zip(simulate(lambda c: work(c, 0), 4), simulate(lambda c: work(c, 2), 4), strict=True):
        assert whole.layers == parts.layers
        one, other = whole.network().state_dict(), parts.network().state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_state_of_another_network_is_refused() -> None:
    (builder,) = grown(1)
    x, t = data()
    with pytest.raises(CheckpointError, match=r"layer 0: O: expected \[3, 4\], found \[3, 5\]"):
        simulate(lambda comm: Builder(SETTINGS, x[:, :4], t, comm).load_state_dict(builder.state_dict()), 1)


def wrong(comm: Any, kind: str) -> None:
    x, t = data()
    if kind == "nan" and comm.rank == 1:
        x[3, 3] = math.nan
    cases: dict[str, Any] = {
        "nan": lambda: Builder(SETTINGS, x, t, comm),
        "none": lambda: Builder(SETTINGS, x[:0], t[:0], comm),
        "classes": lambda: Builder(SETTINGS, x, t.argmax(1), comm),
        "graph": lambda: Builder(SETTINGS, x, t, comm, ring(5, 2)),
        "unlike": lambda: Builder(SETTINGS, x[:, : 4 + comm.rank], t, comm),
    }
    cases[kind]()


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("nan", NotFinite, "rank 1: inputs or targets are not finite"),
        ("none", UsageError, "expected a worker with examples and targets other than 0, found none"),
        ("classes", UsageError, r"rank 0: expected inputs \[J, ...\] and targets \[J, Q\], one-hot for classes"),
        ("graph", UsageError, "graph: expected one of 2 workers, found 5"),
        ("unlike", Disagreement, "the ranks disagree on inputs: rank 0 has 4, rank 1 has 5"),
    ],
)
def test_wrong_arguments_are_named(kind: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        simulate(lambda comm: wrong(comm, kind), 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"layers": 0}, "layers: expected at least 1, found 0"),
        ({"alpha": 0.9}, "alpha: expected at least 1, found 0.9"),
        ({"ridge": 0.0}, "ridge: expected at least"),
        ({"tolerance": math.nan}, "tolerance: expected at least 0, found nan"),
        ({"mixing": "slow"}, "mixing: expected one of finite, repeated"),
        ({"width": "wide"}, "width: expected a whole number"),
    ],
)
def test_settings_check_themselves(given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        SSFNSettings(**given)
