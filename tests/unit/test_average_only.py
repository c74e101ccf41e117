"""Parameters that are averaged only: the workers' weighted mean after each round, whatever the strategy."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dual import DualRun, WithDual, run
from helpers import VARIANTS, network, same
from swarmstep import (
    OSP,
    DiLoCo,
    Every,
    InformedSwarm,
    Int8,
    LocalSGD,
    Options,
    Strategy,
    Synchronizer,
    TopK,
    simulate,
)
from swarmstep.asynchronous import Gradient
from swarmstep.errors import Disagreement, UsageError
from swarmstep.runtime.flat import Flat

WORKERS, STEPS, EVERY = 3, 7, 3


def trained(strategy: Strategy, steps: int = STEPS, **given: Any) -> list[DualRun]:
    return simulate(lambda comm: run(comm, strategy, steps, **given), WORKERS)


def mean_of(found: list[DualRun], step: int) -> np.ndarray[Any, Any]:
    """The weighted mean of what the workers brought into the round at a step, in double precision."""
    weights = np.array([one.counted[step] for one in found])
    duals = np.stack([one.opened[step].double().numpy() for one in found])
    return (weights[:, None] * duals).sum(0) / weights.sum()


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "independent"])
def test_every_strategy_gives_them_the_weighted_mean(name: str) -> None:
    strategy = dataclasses.replace(VARIANTS[name], when=Every(EVERY))
    found = trained(strategy)
    assert {*found[0].landed} == {3, 6}
    for step, first in found[0].landed.items():
        assert len({float(one.opened[step][0]) for one in found}) == WORKERS  # they brought different ones
        assert all(same(one.landed[step], first) for one in found)
        np.testing.assert_allclose(first.numpy(), mean_of(found, step), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "strategy", [DiLoCo(when=Every(1)), InformedSwarm(when=Every(1), reach="fixed")], ids=["diloco", "swarm"]
)
def test_the_outer_momentum_moves_the_others_and_not_them(strategy: Strategy) -> None:
    """With one worker the mean is its own: what is averaged only stays, and the rest goes on with its momentum."""
    (alone,) = simulate(lambda comm: run(comm, strategy, 6), 1)
    (plain,) = simulate(lambda comm: run(comm, LocalSGD(when=Every(1)), 6), 1)
    for step in alone.opened:
        assert same(alone.opened[step], alone.landed[step])
    assert not torch.equal(alone.weights[-1], plain.weights[-1])


@pytest.mark.parametrize("codec", [Int8(), TopK(0.1)], ids=["int8", "topk"])
def test_a_codec_sends_them_as_they_are(codec: Any) -> None:
    found = trained(LocalSGD(when=Every(EVERY)), codec=codec)
    for step, landed in found[0].landed.items():
        np.testing.assert_allclose(landed.numpy(), mean_of(found, step), rtol=1e-6)


def test_with_fragments_each_goes_with_its_module() -> None:
    found = trained(DiLoCo(when=Every(4)), steps=8, fragments=2)
    owner = [i for i, part in enumerate(Flat(WithDual(0), fragments=2).fragments) if "dual" in part.names]
    flat = Flat(WithDual(0), fragments=2)
    assert sum(part.averaged for part in flat.fragments) == flat.layout.averaged == 3
    assert len(owner) == 1
    landed = {
        step: value for step, value in found[0].landed.items() if all(same(value, o.landed[step]) for o in found)
    }
    for step, value in landed.items():
        np.testing.assert_allclose(value.numpy(), mean_of(found, step), rtol=1e-5)
    assert len(landed) == 2  # one round of its fragment in 4 steps; the other fragment's leave it alone


def test_a_delayed_round_keeps_the_steps_taken_meanwhile() -> None:
    start, lands = 3, 5
    found, alone = (
        trained(s, steps=5, **g) for s, g in ((DiLoCo(when=Every(3)), {"delay": 2}), (LocalSGD(when=Every(9)), {}))
    )
    expected = mean_of(found, start)
    for one, other in zip(found, alone, strict=True):
        assert same(one.duals[lands - 1], other.duals[lands - 1])  # nothing has landed before
        change = expected - one.opened[start].double().numpy()
        np.testing.assert_allclose(
            one.duals[lands].numpy(), other.duals[lands].double().numpy() + change, rtol=1e-5
        )


@pytest.mark.parametrize("given", [{}, {"delay": 2, "mix": 0.5}, {"codec": Int8(), "views": True}])
@pytest.mark.parametrize("strategy", [DiLoCo(when=Every(EVERY)), InformedSwarm(when=Every(EVERY))], ids=["d", "s"])
def test_a_resumed_run_is_the_same_bit_for_bit(strategy: Strategy, given: dict[str, Any]) -> None:
    assert same(
        [one[:2] for one in trained(strategy, resume=4, **given)], [one[:2] for one in trained(strategy, **given)]
    )


def test_views_and_copies_give_the_same_bits() -> None:
    strategy = DiLoCo(when=Every(EVERY))
    assert same([one.weights for one in trained(strategy, views=True)], [one.weights for one in trained(strategy)])


def test_they_lie_behind_the_other_parameters_and_before_the_buffers() -> None:
    flat = Flat(WithDual(0))
    parameters = sum(p.numel() for p in network().parameters())
    assert (flat.layout.parameters, flat.layout.averaged) == (parameters, 3)
    names = flat.layout.names
    assert names.index("dual") == len([*network().parameters()])
    assert names[names.index("dual") + 1 :] == ("net.1.running_mean", "net.1.running_var")
    assert same(flat.layout, Flat(copy.deepcopy(WithDual(0))).layout)


def test_osp_defers_none_of_their_gradients() -> None:
    """All workers step them by the mean gradient at once, so they stay equal where the deferred rest does not."""
    found = trained(OSP(share=1.0, when=Every(1)))
    for step in range(1, STEPS + 1):
        assert all(same(one.duals[step], found[0].duals[step]) for one in found)
    assert not same(found[0].weights[-2], found[1].weights[-2])


def test_refused_by_name() -> None:
    model = WithDual(0)
    model.average_only = ("lambda",)  # pyright: ignore
    with pytest.raises(UsageError, match=r"WithDual.average_only: .* \(dual\), found 'lambda'"):
        Flat(model)
    alone = nn.Module()
    alone.alpha, alone.average_only = nn.Parameter(torch.zeros(1)), ("alpha",)  # pyright: ignore
    with pytest.raises(UsageError, match="no trainable parameter"):
        Flat(alone)
    plain = WithDual(0)
    plain.net = nn.Linear(5, 3)  # pyright: ignore
    with pytest.raises(UsageError, match="'dual' is averaged only, and asynchronous methods"):
        Gradient(plain, lambda *_: torch.zeros(()))


def test_ranks_must_agree_on_them() -> None:
    def build(comm: Any) -> None:
        model = WithDual(0)
        if comm.rank:
            model.average_only = ()  # pyright: ignore
        Synchronizer(model, LocalSGD(), comm, Options())

    with pytest.raises(Disagreement, match="dual"):
        simulate(build, 2)


@pytest.mark.parametrize("name", ["diloco", "easgd", "local-sgd", "pso-ps", "swarm", "independent"])
def test_the_result_has_the_mean_of_all(name: str) -> None:
    strategy = VARIANTS[name]
    found = trained(dataclasses.replace(strategy, when=Every(EVERY)) if name != "independent" else strategy)
    if not strategy.one_result:
        return
    expected = np.mean([one.duals[-2].double().numpy() for one in found], axis=0)
    for one in found:
        np.testing.assert_allclose(one.duals[-1].numpy(), expected, rtol=1e-5, atol=1e-7)
