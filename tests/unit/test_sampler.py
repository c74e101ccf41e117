"""The sampler: a stream of seeded permutations that any step can be asked of."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.data.sampler import BalancedSampler, Sampler
from swarmstep.data.sharding import Shard, shard
from swarmstep.errors import UsageError


def part(size: int) -> Shard:
    """A shard whose targets tell the example."""
    indices = torch.arange(size) * 3 + 1
    return Shard(indices, indices * 10, (size,))


@given(st.integers(1, 40), st.integers(1, 90), st.integers(0, 99), st.integers(0, 7))
def test_each_epoch_shows_each_example_once(size: int, batch: int, seed: int, rank: int) -> None:
    mine = part(size)
    sampler = Sampler(mine, batch, seed, rank)
    steps = 3 * size // batch + 2
    batches = [sampler.batch(step) for step in range(1, steps + 1)]
    assert all(len(b.indices) == len(b.targets) == batch for b in batches)
    assert all(b.targets.equal(b.indices * 10) for b in batches)
    stream = torch.cat([b.indices for b in batches])
    for epoch in stream.split(size)[: len(stream) // size]:
        assert epoch.sort().values.equal(mine.indices)
    assert [sampler.epoch(step) for step in range(1, steps + 1)] == [
        (step - 1) * batch // size for step in range(1, steps + 1)
    ]


@given(st.integers(1, 40), st.integers(1, 50), st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_a_batch_depends_on_seed_rank_and_step_alone(size: int, batch: int, steps: list[int]) -> None:
    mine = part(size)
    straight = Sampler(mine, batch, 5, 2)
    stream = {step: straight.batch(step).indices for step in range(1, max(steps) + 1)}
    jumping = Sampler(mine, batch, 5, 2)
    torch.manual_seed(len(steps))
    for step in steps:
        assert jumping.batch(step).indices.equal(stream[step])
        assert Sampler(mine, batch, 5, 2).batch(step).indices.equal(stream[step])


def test_seeds_ranks_and_epochs_differ() -> None:
    mine = part(50)
    orders = [Sampler(mine, 50, seed, rank).batch(step).indices for seed, rank, step in
              [(0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]]  # fmt: skip
    assert len({tuple(order.tolist()) for order in orders}) == 4


@given(st.integers(1, 6), st.integers(6, 40), st.integers(0, 99))
def test_seldp_workers_never_meet_within_an_epoch(workers: int, count: int, seed: int) -> None:
    shards = shard(torch.arange(count), "seldp", workers, seed, None)
    epochs = [Sampler(mine, count, seed, rank).batch(2).indices for rank, mine in enumerate(shards)]
    smallest = count // workers
    for rank, mine in enumerate(shards):
        pairs = zip(epochs[rank].split(list(mine.chunks)), mine.indices.split(list(mine.chunks)), strict=True)
        assert all(seen.sort().values.equal(chunk.sort().values) for seen, chunk in pairs)
    first = torch.cat([epoch[:smallest] for epoch in epochs])
    assert len(first.unique()) == len(first)


@pytest.mark.parametrize(("size", "batch"), [(0, 1), (3, 0)])
def test_nothing_to_draw_is_refused(size: int, batch: int) -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Sampler(part(size), batch, 0, 0)


def test_steps_count_from_one() -> None:
    sampler = Sampler(part(3), 1, 0, 0)
    for call in (sampler.batch, sampler.epoch):
        with pytest.raises(UsageError, match="steps count from 1, found 0"):
            call(0)


Labels = st.lists(st.integers(0, 2), min_size=3, max_size=30).filter(lambda labels: {*labels} == {0, 1, 2})


@given(Labels, st.integers(1, 20), st.integers(0, 9))
def test_balanced_batches_have_equally_many_of_each_class(labels: list[int], batch: int, seed: int) -> None:
    mine = Shard(torch.arange(len(labels)) * 3 + 1, torch.tensor(labels), (len(labels),))
    sampler = BalancedSampler(mine, batch, seed, 1, 3)
    steps = 3 * len(labels) // batch + 3
    batches = [sampler.batch(step) for step in range(1, steps + 1)]
    counts = torch.stack([b.targets.bincount(minlength=3) for b in batches])
    assert (counts.sum(1) == batch).all()
    assert (counts.max(1).values - counts.min(1).values <= 1).all()
    assert counts.cumsum(0).max(1).values.sub(counts.cumsum(0).min(1).values).max() <= 1
    for label in range(3):  # in every pass over a class each of its examples once
        own = mine.indices[mine.targets == label]
        stream = torch.cat([b.indices[b.targets == label] for b in batches])
        for part in stream.split(len(own))[: len(stream) // len(own)]:
            assert part.sort().values.equal(own)
    again = BalancedSampler(mine, batch, seed, 1, 3)
    for step in (steps, 1, 2):  # any step can be asked for at any time
        assert again.batch(step).indices.equal(batches[step - 1].indices)


def test_a_shard_without_a_class_is_named() -> None:
    mine = Shard(torch.arange(4), torch.tensor([0, 0, 2, 2]), (4,))
    with pytest.raises(
        UsageError, match=r"of the 4 examples of rank 3 none is of class 1, .* \(--shards classes:3"
    ):
        BalancedSampler(mine, 2, 0, 3, 3)
