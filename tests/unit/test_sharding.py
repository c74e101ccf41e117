"""Sharding: every spec's promise as a property, and every way to get it wrong."""

from __future__ import annotations

import random
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from swarmstep.data.sharding import Shard, hold_out, parse, shard
from swarmstep.errors import UsageError

CLASSES = 5
BAD = [
    6,
    1,
    5,
    7,
    6,
    0,
    7,
    4,
    4,
    8,
    9,
    2,
    9,
    3,
    0,
    0,
    7,
    8,
    6,
    1,
]  # what rank 1 of 2 drew with seed 3 of 10 classes, before examples could have several targets


@st.composite
def dealt(draw: st.DrawFn) -> tuple[Tensor, int, int]:
    """Targets in which each class occurs, a number of workers, a seed."""
    targets = draw(st.lists(st.integers(0, CLASSES - 1), max_size=60)) + list(range(CLASSES)) * 4
    return torch.tensor(targets), draw(st.integers(1, 12)), draw(st.integers(0, 1000))


def together(shards: list[Shard]) -> list[int]:
    return torch.cat([part.indices for part in shards]).sort().values.tolist()


@given(st.integers(3, 60_000), st.integers(0, 99))
def test_hold_out_parts_are_disjoint_and_complete(count: int, seed: int) -> None:
    held = hold_out(count, seed)
    assert torch.cat(held).sort().values.equal(torch.arange(count))
    assert 1 <= len(held.probe) <= max(1, min(512, count // 20))
    assert 1 <= len(held.validation) <= max(1, min(2000, count // 10))
    assert len(held.train) > 0
    again = hold_out(count, seed)
    assert all(a.equal(b) for a, b in zip(held, again, strict=True))


def test_hold_out_sizes_and_seed() -> None:
    assert [len(part) for part in hold_out(60_000, 0)] == [512, 2000, 57_488]
    assert [len(part) for part in hold_out(1437, 0)] == [71, 143, 1223]
    assert not hold_out(1000, 0).probe.equal(hold_out(1000, 1).probe)


@pytest.mark.parametrize("arguments", [(2, 0), (100, 0, 0), (100, 0, 5, 0)])
def test_hold_out_refuses(arguments: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="at least"):
        hold_out(*arguments)


@given(dealt())
def test_iid(case: tuple[Tensor, int, int]) -> None:
    targets, workers, seed = case
    shards = shard(targets, "iid", workers, seed, None)
    assert together(shards) == list(range(len(targets)))
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1
    assert all(part.targets.equal(targets[part.indices]) for part in shards)
    assert all(part.chunks == (len(part),) for part in shards)


@given(dealt(), st.randoms())
def test_contiguous_is_one_stretch_of_what_is_stored(case: tuple[Tensor, int, int], source: random.Random) -> None:
    targets, workers, seed = case
    places = torch.tensor(
        source.sample(range(3 * len(targets)), len(targets))
    )  # some are held out, all are shuffled
    shards = shard(targets, "contiguous", workers, seed, None, places)
    stretches = [places[part.indices] for part in shards]
    assert torch.cat(stretches).equal(places.sort().values)
    sizes = [len(part) for part in shards]
    assert max(sizes) - min(sizes) <= 1
    assert all(part.targets.equal(targets[part.indices]) for part in shards)
    assert torch.cat([p.indices for p in shard(targets, "contiguous", workers, seed, None)]).tolist() == [
        *range(len(targets))
    ]


@pytest.mark.filterwarnings("ignore:shards classes")
@given(dealt(), st.integers(1, CLASSES))
def test_classes(case: tuple[Tensor, int, int], held: int) -> None:
    targets, workers, seed = case
    workers = min(workers, 4)  # each class has at least 4 examples
    shards = shard(targets, f"classes:{held}", workers, seed, CLASSES)
    holds = [{(held * i + j) % CLASSES for j in range(held)} for i in range(workers)]
    covered = set().union(*holds)
    assert together(shards) == [i for i, label in enumerate(targets.tolist()) if label in covered]
    for label in covered:
        counts = [int((part.targets == label).sum()) for part in shards]
        assert [count > 0 for count in counts] == [label in mine for mine in holds]
        assert max(counts) - min(c for c in counts if c) <= 1


def test_classes_without_a_holder_are_named() -> None:
    with pytest.warns(UserWarning, match="no worker of 1 holds class 3, 4;"):
        shard(torch.arange(5).repeat(3), "classes:3", 1, 0, 5)


@given(dealt(), st.sampled_from(["0.001", "0.05", "0.3", "1", "100", "1e6"]))
def test_dirichlet(case: tuple[Tensor, int, int], alpha: str) -> None:
    targets, workers, seed = case
    shards = shard(targets, f"dirichlet:{alpha}", workers, seed, CLASSES)
    assert together(shards) == list(range(len(targets)))
    assert all(len(part) for part in shards)
    assert all(part.targets.equal(targets[part.indices]) for part in shards)


def test_dirichlet_alpha_says_how_alike_the_shards_are() -> None:
    targets = torch.arange(10).repeat(200)

    def spread(spec: str) -> float:
        parts = shard(targets, spec, 4, 0, 10)
        return float(torch.stack([part.targets.bincount(minlength=10).double() for part in parts]).std(0).mean())

    assert spread("dirichlet:1e6") < 1 < spread("dirichlet:10") < spread("dirichlet:0.1")


@given(dealt(), st.data())
def test_bad_labels(case: tuple[Tensor, int, int], data: st.DataObject) -> None:
    targets, workers, seed = case
    bad = data.draw(st.integers(1, workers))
    clean = shard(targets, "iid", workers, seed, CLASSES)
    shards = shard(targets, f"bad-labels:{bad}", workers, seed, CLASSES)
    again = shard(targets, f"iid+bad-labels:{bad}", workers, seed, CLASSES)
    for rank, part in enumerate(shards):
        assert part.indices.equal(clean[rank].indices)
        assert part.targets.equal(again[rank].targets)
        assert part.targets.dtype == torch.int64
        if rank < workers - bad:
            assert part.targets.equal(clean[rank].targets)
        else:
            assert 0 <= part.targets.min() <= part.targets.max() < CLASSES


def test_bad_labels_are_uniform_and_differ_between_ranks() -> None:
    targets = torch.zeros(4000, dtype=torch.int64)
    good, one, two = shard(targets, "bad-labels:2", 3, 0, 4)
    assert not good.targets.any()
    assert all(280 < n < 390 for n in one.targets.bincount(minlength=4).tolist())
    assert not one.targets[:1000].equal(two.targets[:1000])


def test_bad_labels_are_those_they_always_were() -> None:
    bad = shard(torch.zeros(40, dtype=torch.int64), "bad-labels:1", 2, 3, 10)[1].targets
    assert bad.tolist() == BAD


def test_bad_labels_of_examples_with_several_targets() -> None:
    targets = torch.zeros(300, 8, dtype=torch.int64)
    good, bad = shard(targets, "bad-labels:1", 2, 0, 4)
    assert not good.targets.any()
    assert bad.targets.shape == (150, 8)
    assert bad.targets.dtype == torch.int64
    assert all(220 < n < 380 for n in bad.targets.flatten().bincount(minlength=4).tolist())


@pytest.mark.parametrize("spec", ["classes:2", "dirichlet:1", "dirichlet:1+bad-labels:1"])
def test_examples_with_several_targets_cannot_be_sharded_by_class(spec: str) -> None:
    why = f"shards '{re.escape(spec)}' need examples of one class each, and here each has several"
    with pytest.raises(UsageError, match=why):
        shard(torch.zeros(20, 8, dtype=torch.int64), spec, 2, 0, 4)


def test_bad_labels_come_on_top_of_other_shards() -> None:
    targets = torch.arange(4).repeat(25)
    plain = shard(targets, "classes:1", 4, 0, 4)
    mixed = shard(targets, "classes:1+bad-labels:1", 4, 0, 4)
    assert all(a.indices.equal(b.indices) for a, b in zip(plain, mixed, strict=True))
    assert len(mixed[2].targets.unique()) == 1
    assert len(mixed[3].targets.unique()) == 4
    assert shard(targets, "seldp+bad-labels:1", 4, 0, 4)[3].chunks == (25, 25, 25, 25)


@given(dealt())
def test_seldp_everybody_has_everything_in_turns(case: tuple[Tensor, int, int]) -> None:
    targets, workers, seed = case
    shards = shard(targets, "seldp", workers, seed, None)
    chunks = [list(part.indices.split(list(part.chunks))) for part in shards]
    for rank, part in enumerate(shards):
        assert together([part]) == list(range(len(targets)))
        assert part.targets.equal(targets[part.indices])
        for turn, chunk in enumerate(chunks[rank]):
            assert chunk.equal(chunks[0][(rank + turn) % workers])
    sizes = shards[0].chunks
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("spec", ["iid", "seldp", "classes:2", "dirichlet:0.3", "bad-labels:1"])
def test_shards_depend_on_the_seed_alone(spec: str) -> None:
    targets = torch.arange(5).repeat(20)
    torch.manual_seed(1)
    one = shard(targets, spec, 3, 7, 5)
    torch.manual_seed(2)
    two = shard(targets, spec, 3, 7, 5)
    other = shard(targets, spec, 3, 8, 5)
    assert all(a.indices.equal(b.indices) and a.targets.equal(b.targets) for a, b in zip(one, two, strict=True))
    assert not all(a.indices.equal(b.indices) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "spec",
    ["", "even", "iid:2", "contiguous:2", "classes", "classes:", "classes:x", "classes:1.5", "dirichlet",
     "dirichlet:nan", "seldp:1", "bad-labels", "iid+iid", "bad-labels:1+iid", "iid+bad-labels:1+bad-labels:1",
     "iid+", "classes:1+dirichlet:1"],
)  # fmt: skip
def test_unknown_specs_list_the_valid_ones(spec: str) -> None:
    with pytest.raises(
        UsageError, match=r"expected iid, contiguous, dealt, classes:K, dirichlet:ALPHA, bad-labels:K, seldp"
    ) as error:
        shard(torch.arange(5).repeat(4), spec, 2, 0, 5)
    assert repr(spec) in str(error.value)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("classes:0", "must be 1 to 5, found 0"),
        ("classes:6", "must be 1 to 5, found 6"),
        ("dirichlet:0", "ALPHA must be"),
        ("dirichlet:inf", "ALPHA must be"),
        ("bad-labels:0", "must be 1 to 2, the number of workers, found 0"),
        ("bad-labels:3", "must be 1 to 2, the number of workers, found 3"),
        ("iid+bad-labels:-1", "must be 1 to 2"),
    ],
)
def test_numbers_out_of_range(spec: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        shard(torch.arange(5).repeat(4), spec, 2, 0, 5)


@pytest.mark.parametrize("spec", ["classes:2", "dirichlet:1", "bad-labels:1", "seldp+bad-labels:1"])
def test_no_classes_no_sharding_by_class(spec: str) -> None:
    with pytest.raises(UsageError, match="expected iid, contiguous or seldp"):
        shard(torch.zeros(20), spec, 2, 0, None)


@pytest.mark.parametrize("workers", [0, 21])
@pytest.mark.parametrize("spec", ["iid", "contiguous", "seldp", "dirichlet:1", "classes:1"])
def test_more_workers_than_examples(spec: str, workers: int) -> None:
    with pytest.raises(UsageError, match=f"workers must be 1 to 20, the number of examples, found {workers}"):
        shard(torch.arange(5).repeat(4), spec, workers, 0, 5)


def test_a_worker_without_an_example_is_named() -> None:
    with pytest.raises(UsageError, match="rank 6 of 7 gets no example"):
        shard(torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1]), "classes:1", 7, 0, 2)


def test_dealt_is_a_spec_but_makes_no_shards() -> None:
    assert parse("dealt", 3, 10) == ("dealt", 0.0, 0)
    with pytest.raises(UsageError, match="shards 'dealt' are none: the workers draw from one Ledger"):
        shard(torch.zeros(9, dtype=torch.int64), "dealt", 3, 0, 10)
    with pytest.raises(UsageError, match="unknown shards 'dealt\\+bad-labels:1'"):
        parse("dealt+bad-labels:1", 3, 10)
