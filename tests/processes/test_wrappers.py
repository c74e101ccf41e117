"""Models that something else synchronizes, too, between real processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pool import Pool
from swarmstep import Comm, Every, LocalSGD, Options, Synchronizer
from swarmstep.errors import UsageError

RULE = LocalSGD(when=Every(1))


def refused(make: Any) -> str:
    with pytest.raises(UsageError) as caught:
        make()
    return str(caught.value)


def data_parallel(comm: Comm) -> list[str]:
    wrapped = DistributedDataParallel(nn.Linear(4, 2))
    model = nn.Linear(4, 2)
    sync = Synchronizer(model, RULE, comm)
    around = DistributedDataParallel(model)
    around(torch.randn(3, 4)).sum().backward()
    return [
        refused(lambda: Synchronizer(wrapped, RULE, comm)),
        refused(lambda: Synchronizer(nn.Sequential(wrapped), RULE, comm)),
        refused(lambda: sync.step(1.0)),
    ]


def test_data_parallel_is_refused_before_and_after(pool: Pool) -> None:
    for whole, inside, later in pool.run(data_parallel):
        assert "the model is a DistributedDataParallel" in whole
        assert "module '0' is a DistributedDataParallel" in inside
        assert "the model is inside of a DistributedDataParallel" in later


def in_shards(comm: Comm, kind: str) -> str:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard, distribute_module, distribute_tensor

    mesh = init_device_mesh("cpu", (comm.size,))
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    if kind == "fsdp":
        fully_shard(model, mesh=mesh)
    elif kind == "part":
        fully_shard(model[1], mesh=mesh)
    else:

        def cut(name: str, module: nn.Module, mesh: Any) -> None:
            for key, parameter in module.named_parameters(recurse=False):
                shard = distribute_tensor(parameter.detach(), mesh, [Shard(0)])
                module.register_parameter(key, nn.Parameter(shard))

        model = distribute_module(model, mesh, cut)
    return refused(lambda: Synchronizer(model, RULE, comm, Options()))


@pytest.mark.parametrize("kind", ["fsdp", "part", "tensor-parallel"])
def test_shards_need_an_island(pool: Pool, kind: str) -> None:
    for said in pool.run(in_shards, kind):
        assert "is a DTensor, of which each rank holds a shard" in said
        assert "Options(island=...)" in said
