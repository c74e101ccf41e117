"""A worker's part of a dataset or loader, and its seeds."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler

from swarmstep import Comm, seed_rank, shard, simulate
from swarmstep.errors import UsageError


class Numbers(Dataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> int:
        return index


class Counted(IterableDataset[int]):
    def __len__(self) -> int:
        return 11

    def __iter__(self) -> Iterator[int]:
        return iter(range(11))


class Endless(IterableDataset[int]):
    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))


@pytest.mark.parametrize("workers", [1, 3, 17])
def test_parts_of_a_dataset_are_disjoint_and_everything(workers: int) -> None:
    def part(comm: Comm) -> list[int]:
        mine = shard(Numbers(52), comm, seed=1)
        return [mine[i] for i in range(len(mine))]  # type: ignore[arg-type]

    parts = simulate(part, workers)
    assert sorted(chain(*parts)) == list(range(52))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == simulate(part, workers)


def test_an_iterable_is_dealt_out_in_turn() -> None:
    parts = simulate(lambda comm: list(shard(Endless(8), comm)), 3)
    assert parts == [[0, 3, 6], [1, 4, 7], [2, 5]]


def batches(loader: Any) -> list[list[int]]:
    return [batch.tolist() for batch in loader]


def test_a_loader_of_a_part_shuffles_by_pass_and_rank() -> None:
    def passes(comm: Comm) -> list[list[list[int]]]:
        loader = shard(DataLoader(Numbers(20), batch_size=3, shuffle=True, drop_last=True), comm, seed=2)
        torch.rand(comm.rank + 1)  # what else is drawn changes nothing
        first, second = batches(loader), batches(loader)
        loader.sampler.set_epoch(0)  # type: ignore[attr-defined]
        assert (batches(loader), batches(loader)) == (first, second)
        assert len(loader) == len(first) == 3
        return [first, second]

    one, two = simulate(passes, 2)
    assert one[0] != one[1]
    assert not {*chain(*one[0], *one[1])} & {*chain(*two[0], *two[1])}


def test_loaders_of_other_kinds() -> None:
    def read(comm: Comm) -> list[Any]:
        return [
            batches(shard(DataLoader(Endless(7), batch_size=2), comm)),
            sorted(chain(*batches(shard(DataLoader(Numbers(7), batch_size=2), comm)))),
            list(shard(DataLoader(Endless(3), batch_size=None), comm)),
        ]

    (one, plain, single), (other, rest, _) = simulate(read, 2)
    assert (one, other) == ([[0, 2], [4, 6]], [[1, 3], [5]])
    assert sorted(plain + rest) == list(range(7))
    assert single == [0, 2]


def test_what_cannot_be_divided_is_named() -> None:
    def refuse(comm: Comm) -> None:
        with pytest.raises(UsageError, match=r"at least 2 examples, one a worker, found 1"):
            shard(Numbers(1), comm)
        with pytest.raises(UsageError, match="a sampler of its own"):
            shard(DataLoader(Numbers(4), sampler=WeightedRandomSampler([1.0] * 4, 4)), comm)
        data = Numbers(8)
        with pytest.raises(UsageError, match="a sampler of its own"):  # a pass is 4 examples, not all
            shard(DataLoader(data, sampler=RandomSampler(data, num_samples=4)), comm)

    simulate(refuse, 2)


def test_seeds_differ_from_rank_to_rank() -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002

    def draw(rank: int) -> list[float]:
        seed_rank(3, rank)
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002

    try:
        assert draw(0) == draw(0)
        assert all(a != b for a, b in zip(draw(0), draw(1), strict=True))
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


@pytest.mark.parametrize("workers", [1, 3, 4])
def test_a_stream_that_knows_its_length_still_does(workers: int) -> None:
    def lengths(comm: Comm) -> tuple[int, int]:
        loader = shard(DataLoader(Counted(), batch_size=None), comm)
        return len(loader), len([*loader])

    found = simulate(lengths, workers)
    assert all(said == had for said, had in found)
    assert sum(had for _, had in found) == 11
