"""A worker's own part of what a program already has: a dataset, or the loader of one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    get_worker_info,
)

from swarmstep.arguments import check_type
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.seeding import generator, mix

Data = TypeVar("Data", bound="Dataset[Any] | DataLoader[Any]")

_KEPT = (
    "batch_size", "drop_last", "collate_fn", "num_workers", "pin_memory", "timeout", "worker_init_fn",
    "multiprocessing_context", "prefetch_factor", "persistent_workers",
)  # fmt: skip


def shard(data: Data, comm: Comm, seed: int = 0) -> Data:
    """Return this worker's part of a dataset, or a loader like this one of its part. Communicates with nobody.

    - A `Dataset` with a length: a random part of it. The workers' parts are disjoint, together everything, and of
      equal size but for one example.
    - An `IterableDataset`: every W-th of its examples. It must give the same examples in the same order on all
      workers; in the processes of a loader, too, which divide a worker's part among them.
    - A `DataLoader`: one with the same settings. If it shuffles, each worker has orders of its own, another in
      each pass; they are functions of (seed, rank, pass), and `loader.sampler.set_epoch(n)` sets the number of the
      next pass.

    Args:
        data: the same on all workers.
        comm: the group; `rank` and `size` count.
        seed: of parts and orders, the same on all workers.

    Raises:
        UsageError: a loader with a sampler of its own (give `shard` its dataset instead), fewer examples than
            workers, or an elastic group, where ranks change.
    """
    check_type("shard: comm", comm, Comm)
    if getattr(comm, "elastic", False):
        raise UsageError(
            "shard: in an elastic group the ranks change; draw each batch by (sync.steps, sync.comm.rank, "
            "sync.comm.size), as examples/train.py does"
        )
    if isinstance(data, DataLoader):
        return cast(Data, _loader(cast("DataLoader[Any]", data), comm, seed))
    if isinstance(data, IterableDataset):
        return cast(Data, _Strided(cast("IterableDataset[Any]", data), comm.rank, comm.size))
    return cast(Data, _part(cast("Dataset[Any]", data), comm, seed))


def _part(data: Dataset[Any], comm: Comm, seed: int) -> Subset[Any]:
    count = len(data) if hasattr(data, "__len__") else 0  # type: ignore[arg-type]
    if count < comm.size:
        raise UsageError(
            f"shard: expected a dataset with at least {comm.size} examples, one a worker, found {count}"
        )
    order = torch.randperm(count, generator=generator(seed, "shard"))
    return Subset(data, order.tensor_split(comm.size)[comm.rank].tolist())


def _loader(loader: DataLoader[Any], comm: Comm, seed: int) -> DataLoader[Any]:
    part = shard(loader.dataset, comm, seed)
    kept = {name: getattr(loader, name) for name in _KEPT}
    iterable = isinstance(part, IterableDataset)
    drawn = loader.sampler
    shuffles = type(drawn) is RandomSampler and not drawn.replacement and len(drawn) == len(drawn.data_source)
    usual = loader.batch_size is not None or loader.batch_sampler is None
    if not iterable and not (usual and (shuffles or type(loader.sampler) is SequentialSampler)):
        raise UsageError(
            "shard: the DataLoader has a sampler of its own, which knows nothing of the workers; call "
            "shard(dataset, comm), and give its result a loader and a sampler"
        )
    sampler = None if iterable or not shuffles else _Shuffled(len(cast("Subset[Any]", part)), seed, comm.rank)
    return DataLoader(part, sampler=sampler, generator=generator(seed, "loader", comm.rank), **kept)


class _Strided(IterableDataset[Any]):
    """Every W-th example of another, from one on; in the processes of a loader each has its part of them."""

    def __init__(self, data: IterableDataset[Any], rank: int, size: int) -> None:
        self._data, self._rank, self._size = data, rank, size

    def __len__(self) -> int:
        """How many of them there are, where the other one knows its length."""
        return len(range(self._rank, len(self._data), self._size))  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        process, processes = (info.id, info.num_workers) if info else (0, 1)
        return islice(iter(self._data), self._rank + self._size * process, None, self._size * processes)


class _Shuffled(Sampler[int]):
    """All places of a part, in another order in each pass."""

    def __init__(self, count: int, seed: int, rank: int) -> None:
        self._count, self._seed, self._rank, self._pass = count, seed, rank, 0

    def set_epoch(self, number: int) -> None:
        """Let the next pass be this one, from 0."""
        self._pass = number

    def __iter__(self) -> Iterator[int]:
        source = generator(self._seed, "shuffled", self._rank, self._pass)
        self._pass += 1
        return iter(torch.randperm(self._count, generator=source).tolist())

    def __len__(self) -> int:
        return self._count


def seed_rank(seed: int, rank: int) -> int:
    """Seed the global generators of Python, NumPy and torch, differently on each rank; return the rank's seed.

    In `simulate` the workers have one process, and so one generator of Python's and of NumPy's, which the last
    call seeds; torch's of the CPU is each worker's own.
    """
    check_type("seed_rank: seed", seed, int)
    check_type("seed_rank: rank", rank, int)
    own = mix(seed, "rank", rank)
    random.seed(own)
    np.random.seed(own % 2**32)  # noqa: NPY002
    torch.manual_seed(own)
    return own
