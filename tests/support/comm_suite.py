"""Every verb of a Comm against plain torch: the tests of a folder whose fixture `world` runs functions on one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers import bits, same
from swarmstep import Comm
from swarmstep.errors import CommError, UsageError
from swarmstep.seeding import generator

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MOVED = [torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.int16, torch.uint8, torch.int64]
SHAPES = [(), (0,), (1,), (5,), (2, 3), (4, 1, 2)]

workers = st.integers(1, 4)
shapes = st.sampled_from(SHAPES)
seeds = st.integers(0, 2**32)
layouts = st.sampled_from(["contiguous", "transposed", "strided"])


class World(NamedTuple):
    """Runs function(comm, *arguments) for each of `workers` workers, on Comms of one kind."""

    kind: str
    run: Callable[..., list[Any]]

    def __call__(self, function: Any, *arguments: Any, workers: int) -> list[Any]:
        return self.run(function, *arguments, workers=workers)


def tensor(seed: int, rank: int, shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> Tensor:
    """Return what a rank brings; the same in the test and in the worker."""
    source = torch.randn(shape, generator=generator(seed, rank, "x")) * 3
    x = source > 0 if dtype == torch.bool else source.abs().to(dtype)
    if layout == "transposed" and len(shape) > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided" and shape:
        return x.repeat_interleave(2, dim=0)[::2]
    return x


def call(comm: Comm, verb: str, x: Tensor, arguments: tuple[Any, ...]) -> Any:
    """Call one verb and return its result, having checked that the argument and the results stay apart."""
    before = x.clone()
    result = getattr(comm, verb)(x, *arguments)
    assert same(x, before), f"{verb} changed its argument"
    found = result[0] if isinstance(result, tuple) else result
    answer = (found.clone(), *result[1:]) if isinstance(result, tuple) else found.clone()
    found.fill_(comm.rank % 2)
    comm.gather(torch.zeros(1))  # everybody has written into theirs
    assert (found == comm.rank % 2).all(), f"{verb} gave two ranks the same memory"
    assert same(x, before), f"{verb} returned its argument"
    return answer


def move(comm: Comm, verb: str, what: tuple[Any, ...], arguments: tuple[Any, ...]) -> Any:
    seed, shape, dtype, layout = what
    return call(comm, verb, tensor(seed, comm.rank, shape, dtype, layout), arguments)


def average(comm: Comm, what: tuple[Any, ...], weights: list[float]) -> Any:
    """Average; a rank of weight 0 brings NaN. Returns the error's text instead, if one is raised."""
    seed, shape, dtype, layout = what
    x = tensor(seed, comm.rank, shape, dtype, layout)
    if not weights[comm.rank]:
        x = torch.full_like(x, math.nan)
    try:
        return call(comm, "mean", x, (weights[comm.rank],))
    except CommError as error:
        return str(error)


def whats(dtypes: list[torch.dtype]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(seeds, shapes, st.sampled_from(dtypes), layouts)


@given(workers, whats(MOVED))
def test_gather_stacks_in_rank_order(world: World, size: int, what: tuple[Any, ...]) -> None:
    seed, *rest = what
    expected = torch.stack([tensor(seed, rank, *rest) for rank in range(size)])
    assert all(same(found, expected) for found in world(move, "gather", what, (), workers=size))


@given(workers, whats(MOVED), st.data())
def test_broadcast_gives_the_source(world: World, size: int, what: tuple[Any, ...], data: Any) -> None:
    seed, *rest = what
    src = data.draw(st.integers(0, size - 1))
    expected = tensor(seed, src, *rest)
    assert all(same(found, expected) for found in world(move, "broadcast", what, (src,), workers=size))


@given(workers, whats(MOVED), st.data())
def test_permute_receives_from_its_source(world: World, size: int, what: tuple[Any, ...], data: Any) -> None:
    seed, *rest = what
    source = data.draw(st.permutations(range(size)))
    found = world(move, "permute", what, (source,), workers=size)
    assert all(same(found[rank], tensor(seed, source[rank], *rest)) for rank in range(size))


@given(workers, whats(MOVED))
def test_all_to_all_transposes_the_rows(world: World, size: int, what: tuple[Any, ...]) -> None:
    seed, shape, *rest = what
    brought = [tensor(seed, rank, (size, *shape), *rest) for rank in range(size)]
    found = world(move, "all_to_all", (seed, (size, *shape), *rest), (), workers=size)
    for rank in range(size):
        assert same(found[rank], torch.stack([rows[rank] for rows in brought]))


@given(whats(FLOATS), st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 3.7]), min_size=1, max_size=4))
def test_mean_is_weighted_and_the_same_everywhere(
    world: World, what: tuple[Any, ...], weights: list[float]
) -> None:
    found = world(average, what, weights, workers=len(weights))
    if not any(weights):
        assert all("every rank had weight 0" in said for said in found)
        return
    seed, shape, dtype, layout = what
    terms = [w * tensor(seed, rank, shape, dtype, layout) for rank, w in enumerate(weights) if w]
    expected = sum(term.double() for term in terms) / sum(weights)
    scale = sum(term.double().abs() for term in terms) / sum(weights)
    for mean, total in found:
        assert (mean.dtype, mean.shape) == (dtype, torch.Size(shape))
        assert bits(mean) == bits(found[0][0])
        assert total == pytest.approx(sum(weights), rel=8 * torch.finfo(dtype).eps)
        assert ((mean.double() - expected).abs() <= 8 * torch.finfo(dtype).eps * (scale + 1e-3)).all()


@given(whats([torch.float32, torch.float64]), st.lists(st.sampled_from([0.0, 1.0, 0.3]), min_size=2, max_size=4))
def test_exact_sums_add_in_rank_order(world: World, what: tuple[Any, ...], weights: list[float]) -> None:
    if world.kind == "fast" or not any(weights):
        return
    seed, shape, dtype, layout = what
    total = torch.zeros(shape, dtype=dtype)
    weight = torch.zeros((), dtype=dtype)
    for rank, w in enumerate(weights):
        if w:
            total, weight = total + tensor(seed, rank, shape, dtype, layout) * w, weight + w
    for mean, found in world(average, what, weights, workers=len(weights)):
        assert same(mean + 0.0, total / weight + 0.0)  # the sign of a zero is free
        assert found == float(weight)


def misuse(comm: Comm) -> list[str]:
    said = []
    for verb, arguments in [
        ("broadcast", (torch.zeros(2), comm.size)),
        ("broadcast", (torch.zeros(2), -1)),
        ("permute", (torch.zeros(2), [0] * comm.size)),
        ("permute", (torch.zeros(2), list(range(comm.size - 1)))),
        ("all_to_all", (torch.zeros(comm.size + 1),)),
        ("all_to_all", (torch.zeros(()),)),
        ("mean", (torch.zeros(2), -1.0)),
        ("mean", (torch.zeros(2), math.nan)),
        ("mean", (torch.zeros(2), math.inf)),
        ("mean", (torch.zeros(2, dtype=torch.int64), 1.0)),
    ]:
        with pytest.raises(UsageError) as caught:
            getattr(comm, verb)(*arguments)
        said.append(str(caught.value))
    return said


def test_misuse_is_named_before_anything_is_sent(world: World) -> None:
    for said in world(misuse, workers=3):
        assert all("expected" in line and "found" in line for line in said)
        assert "src in 0..2, found 3" in said[0]
        assert "permutation of 0..2" in said[2]


def parts(comm: Comm, colors: list[int]) -> Any:
    part = comm.split(colors[comm.rank])
    members = part.gather(torch.tensor(comm.rank)).tolist()
    again = part.split(part.rank % 2)
    met = again.gather(torch.tensor(comm.rank)).tolist()
    # The same part once more: groups of several parts are made at the same time and must not meet.
    assert part.split(0).gather(torch.tensor(comm.rank)).tolist() == members
    mean, weight = part.mean(torch.tensor([float(comm.rank)]))
    back = comm.gather(torch.tensor(comm.rank)).tolist()  # the whole group still works
    return (part.rank, part.size, members), (again.rank, again.size, met), (float(mean), weight), back


def unevenly(comm: Comm) -> float:
    return float(comm.split(0).mean(torch.tensor([float(comm.rank)]))[0])


def test_parts_may_be_split_whose_ranks_are_in_unequally_many_groups(world: World) -> None:
    for size in (1, 2, 3, 2, 4, 3):
        assert world(unevenly, workers=size) == [(size - 1) / 2] * size


def named(comm: Comm) -> list[float]:
    pairs = comm.split(comm.rank // 2, "pairs")
    crossed = comm.split(comm.rank % 2, "crossed")
    if comm.rank == 0:
        pairs = comm.split(9, "pairs")  # made already: asks nobody
    x = torch.tensor([float(comm.rank)])
    return [float(part.mean(x)[0]) for part in (pairs, crossed, pairs)]


def test_a_named_split_is_made_once(world: World) -> None:
    assert world(named, workers=4) == [[0.5, 1, 0.5], [0.5, 2, 0.5], [2.5, 1, 2.5], [2.5, 2, 2.5]]


def reused(comm: Comm) -> list[float]:
    """Average again and again in memory that is used again; what was asked in one round stays apart."""
    own, found = comm.reusing(), []
    for turn in range(4):
        own.recycle()
        x = torch.full((6,), float(turn + comm.rank))
        mean, weight = own.mean(x)
        rows = own.gather(x)
        sent = own.broadcast(x, turn % comm.size)
        found += [float(mean.sum()), weight, float(rows.sum()), float(sent.sum())]
    return found


def test_memory_is_used_again_only_after_recycle(world: World) -> None:
    expected = []
    for turn in range(4):
        rows = [float(turn + rank) for rank in range(3)]
        expected += [6 * sum(rows) / 3, 3.0, 6 * sum(rows), 6 * rows[turn % 3]]
    assert world(reused, workers=3) == [pytest.approx(expected)] * 3


@pytest.mark.parametrize("colors", [[0, 0, 0, 0], [7, 3, 7, 9], [0, 0, 1, 1], [1, 0, 0, 1]])
def test_split_groups_equal_colors_in_rank_order(world: World, colors: list[int]) -> None:
    for rank, found in enumerate(world(parts, colors, workers=len(colors))):
        members = [r for r, color in enumerate(colors) if color == colors[rank]]
        place = members.index(rank)
        nested = members[place % 2 :: 2]
        assert found[0] == (place, len(members), members)
        assert found[1] == (nested.index(rank), len(nested), nested)
        assert found[2] == (pytest.approx(sum(members) / len(members)), len(members))
        assert found[3] == list(range(len(colors)))
