"""Whole runs with coded vectors: resumed, and near the plain ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from helpers import VARIANTS, Trainer, run, same
from swarmstep import (
    PSOPS,
    STRATEGIES,
    Comm,
    DiLoCo,
    Every,
    InformedSwarm,
    LocalSGD,
    Strategy,
    Warmup,
    simulate,
)
from swarmstep.comm.codecs import Int4, Int8, TopK
from swarmstep.errors import UsageError
from whole_runs import CODECS, CODED, WORKERS, simulated

BARE = [name for name in STRATEGIES if VARIANTS[name].common == "none"]


@pytest.mark.parametrize(("name", "codec"), CODED)
def test_resumed_in_the_middle_of_a_round_equals_uninterrupted_bitwise(name: str, codec: str) -> None:
    given: dict[str, Any] = {"steps": 8, "codec": CODECS[codec], "delay": 2}
    found = simulated(name, "every-3", resume=1, **given)
    for mine, whole in zip(found, simulated(name, "every-3", **given), strict=True):
        assert same(mine[:4], whole[:4])


@pytest.mark.parametrize("codec", ["bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", ["local-sgd", "swarm", "pso-ps", "easgd"])
def test_coding_changes_the_weights_a_little(name: str, codec: str) -> None:
    strategy = dataclasses.replace(VARIANTS[name], when=Every(3))
    found = simulate(lambda comm: run(comm, strategy, 8, codec=CODECS[codec]), WORKERS)
    plain = simulate(lambda comm: run(comm, strategy, 8), WORKERS)
    bound = {"bfloat16": 0.004, "int8": 0.01, "int4": 0.15}[codec]
    for mine, other in zip(found, plain, strict=True):
        apart = (mine.weights[-1] - other.weights[-1]).norm() / (other.weights[-1] - other.weights[0]).norm()
        assert 0 < apart < bound


@pytest.mark.parametrize("name", BARE)
def test_what_has_no_common_vector_takes_no_codec_that_needs_one(name: str) -> None:
    for codec in (Int4(), TopK()):
        with pytest.raises(UsageError, match="needs a reference"):
            simulate(lambda comm, c=codec: Trainer(VARIANTS[name], comm, codec=c), 2)


def test_all_have_the_same_weights_after_a_round_of_what_makes_them_equal() -> None:
    for codec in CODECS.values():
        found = simulate(lambda comm, c=codec: run(comm, LocalSGD(when=Every(2)), 6, codec=c), 4)
        assert all(same(mine.weights[6], found[0].weights[6]) for mine in found)


def test_a_warm_up_is_coded_too() -> None:
    found = simulate(lambda comm: run(comm, Warmup(InformedSwarm(when=Every(2)), 3), 6, codec=Int8(64)), 2)
    assert all(mine.weights[-1].isfinite().all() for mine in found)


def double(comm: Comm) -> None:
    from swarmstep import Options, Synchronizer

    Synchronizer(torch.nn.Linear(2, 2).double(), LocalSGD(), comm, Options(codec=Int8()))


def test_a_model_in_double_precision_is_not_coded() -> None:
    with pytest.raises(UsageError, match="codecs need a float32 vector"):
        simulate(double, 2)


def reference(comm: Comm, strategy: Strategy) -> torch.Tensor:
    """Return what differences are taken from after two rounds, of which one lands late."""
    trainer = Trainer(strategy, comm, codec=Int8(64), delay=1)
    for _ in range(5):
        trainer.step()
    found: torch.Tensor = trainer.sync.state_dict()["fragments"][0]["codec"]["reference"]
    return found


@pytest.mark.parametrize("variant", [v for v in VARIANTS if VARIANTS[v].common != "none"])
def test_what_a_strategy_calls_common_is(variant: str) -> None:
    strategy = dataclasses.replace(VARIANTS[variant], when=Every(2))
    found = simulate(lambda comm: reference(comm, strategy), WORKERS)
    start = simulate(lambda comm: Trainer(strategy, comm).weights(), WORKERS)
    assert all(same(other, found[0]) for other in found)
    assert not same(found[0], start[0])


def one_end(comm: Comm, strategy: Strategy, given: dict[str, Any]) -> torch.Tensor:
    trainer = Trainer(strategy, comm, codec=Int8(64), **given)
    for _ in range(9):
        trainer.step()
    found: torch.Tensor = trainer.sync.state_dict()["fragments"][0]["codec"]["reference"]
    return found


@pytest.mark.parametrize(
    ("strategy", "given"),
    [
        (Warmup(PSOPS(when=Every(4)), 4), {}),
        (DiLoCo(when=Every(2)), {"buffers": "local"}),
        (DiLoCo(when=Every(2)), {"buffers": "local", "delay": 1}),
    ],
    ids=str,
)
def test_buffers_that_stay_local_are_not_in_the_common_reference(
    strategy: Strategy, given: dict[str, Any]
) -> None:
    found = simulate(lambda comm: one_end(comm, strategy, given), WORKERS)
    assert all(same(other, found[0]) for other in found)
