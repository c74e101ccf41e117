"""Workers that are groups of ranks, each with a shard of the model (FSDP2, HSDP): as one worker with all of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from pool import Pool
from swarmstep import (
    PSOPS,
    Comm,
    CoordinateMedian,
    DiLoCo,
    Every,
    InformedSwarm,
    LocalSGD,
    Options,
    Strategy,
    Synchronizer,
    simulate,
)
from swarmstep.comm.codecs import Int8
from swarmstep.errors import NotFinite
from swarmstep.seeding import generator
from whole_runs import fast_ones

STEPS = 7
NAMES = {False: ("island", "shard"), True: ("island", "replica", "shard")}
STRATEGIES: dict[str, Strategy] = {
    "local-sgd": LocalSGD(when=Every(2)),
    "diloco": DiLoCo(when=Every(2)),
    "swarm": InformedSwarm(when=Every(2)),
    "pso-ps": PSOPS(when=Every(2), random="none"),
    "median": CoordinateMedian(when=Every(2)),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def batch(step: int, island: int, ranks: list[int]) -> tuple[Tensor, Tensor]:
    """Return the examples of some ranks of an island."""
    parts = [generator(step, island, rank, "batch") for rank in ranks]
    inputs = torch.cat([torch.randn(4, 5, generator=g) + island for g in parts])
    return inputs, torch.cat([torch.randint(0, 3, (4,), generator=g) for g in parts])


def train(model: nn.Module, sync: Synchronizer, island: int, ranks: list[int]) -> list[Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    rounds = []
    for step in range(STEPS):
        inputs, labels = batch(step, island, ranks)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        rounds.append(sync.step(loss))
    sync.finish()
    return [r for r in rounds if r]


def sharded(world: Comm, strategy: Strategy, given: dict[str, Any], hybrid: bool = False) -> Any:
    """Two islands of two; in hybrid sharding both ranks of an island hold all of the model."""
    rank = world.rank
    shape = (2, 2, 1) if hybrid else (2, 2)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=NAMES[hybrid])
    inner = mesh["replica", "shard"] if hybrid else mesh["shard"]
    model = network()
    for module in (model[0], model[2], model):  # type: ignore[index]
        fully_shard(module, mesh=inner)
    peers, island = world.split(rank % 2), world.split(rank // 2)
    sync = Synchronizer(model, strategy, peers, Options(island=island, **given))
    rounds = train(model, sync, rank // 2, [rank % 2])
    weights = [p.full_tensor().detach() for p in model.parameters()]  # type: ignore[attr-defined]
    return weights, [(r.step, r.participants, r.losses) for r in rounds]


def whole(comm: Comm, strategy: Strategy, given: dict[str, Any]) -> Any:
    """The same with two workers that have twice the batch and all of the model."""
    model = network()
    sync = Synchronizer(model, strategy, comm, Options(**given))
    rounds = train(model, sync, comm.rank, [0, 1])
    return list(model.parameters()), [(r.step, r.participants, r.losses) for r in rounds]


@pytest.mark.parametrize("name", fast_ones(["swarm", "median"], STRATEGIES))
@pytest.mark.parametrize("given", [{}, {"delay": 1}, {"codec": Int8(), "offload": "cpu"}], ids=str)
def test_two_islands_of_two_are_two_workers(pool: Pool, name: str, given: dict[str, Any]) -> None:
    found = pool.run(sharded, STRATEGIES[name], given)
    expected = simulate(lambda comm: whole(comm, STRATEGIES[name], given), 2)
    tolerance = 2e-3 if "codec" in given else 1e-5  # a shard has blocks, and scales, of its own
    for rank, (weights, rounds) in enumerate(found):
        theirs, expected_rounds = expected[rank // 2]
        for a, b in zip(weights, theirs, strict=True):
            assert torch.allclose(a, b, atol=tolerance)
        for mine, other in zip(rounds, expected_rounds, strict=True):
            assert mine[:2] == other[:2]
            assert mine[2] == pytest.approx(other[2], abs=10 * tolerance)


def test_an_island_may_hold_replicas_of_shards(pool: Pool) -> None:
    found = pool.run(sharded, STRATEGIES["diloco"], {}, True)
    expected = simulate(lambda comm: whole(comm, STRATEGIES["diloco"], {}), 2)
    for rank, (weights, _) in enumerate(found):
        for a, b in zip(weights, expected[rank // 2][0], strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def poisoned(world: Comm) -> str:
    """One rank of an island has a shard that is not finite: all ranks of all islands hear of it."""
    model = nn.Linear(2, 2)
    peers, island = world.split(world.rank % 2), world.split(world.rank // 2)
    sync = Synchronizer(model, LocalSGD(when=Every(1)), peers, Options(island=island))
    if world.rank == 3:
        with torch.no_grad():
            model.weight.fill_(torch.inf)
    with pytest.raises(NotFinite) as caught:
        sync.step(1.0)
    return str(caught.value)


def test_a_shard_that_is_not_finite_is_named_everywhere(pool: Pool) -> None:
    assert {said.split(" are not")[0] for said in pool.run(poisoned)} == {"step 1: the weights of rank 1"}
