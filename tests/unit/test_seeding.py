"""Seeds: a function of their parts, the same everywhere and for ever."""

from __future__ import annotations

import hashlib
import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.seeding import generator, mix

parts = st.lists(st.integers(-(2**70), 2**70) | st.text("abc-", max_size=4), min_size=1, max_size=4)


def test_golden_values() -> None:
    """A change here changes every random run that anybody has recorded."""
    digest = hashlib.blake2b(b"0/64/3/pso", digest_size=8).digest()
    assert mix(0, 64, 3, "pso") == int.from_bytes(digest, "little") // 2
    assert mix(0) == 4246866556266386882
    assert generator(0, 1, "x").initial_seed() == mix(0, 1, "x")
    expected = torch.rand(3, generator=torch.Generator().manual_seed(mix(7, "a")))
    assert torch.equal(torch.rand(3, generator=generator(7, "a")), expected)


@given(parts)
def test_a_seed_fits_and_repeats(parts: list[int | str]) -> None:
    assert 0 <= mix(*parts) < 2**63
    assert mix(*parts) == mix(*parts)


def test_neighbours_and_orders_differ() -> None:
    points = list(itertools.product(range(30), range(30), ["a", "b"]))
    assert len({mix(*point) for point in points}) == len(points)
    assert mix(1, 2) != mix(2, 1)
    assert mix(1, 23) != mix(12, 3)
    assert mix(1) != mix(1, 1)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    torch.rand(5, generator=generator(1, 2))
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_are_uniform_over_seeds() -> None:
    """The first draws of neighbouring seeds are not alike: mean and spread of 4000 of them."""
    first = torch.tensor([torch.rand(1, generator=generator(0, step, "r")).item() for step in range(4000)])
    assert abs(first.mean() - 0.5) < 4 * (1 / 12 / 4000) ** 0.5
    assert abs(first.var() - 1 / 12) < 0.005
    pairs = torch.corrcoef(torch.stack([first[:-1], first[1:]]))
    assert abs(pairs[0, 1]) < 4 / 4000**0.5
