"""Islands: what they do not go with."""

from __future__ import annotations

import pytest
from torch import nn

from swarmstep import (
    Comm,
    Every,
    LocalSGD,
    Options,
    Synchronizer,
    simulate,
)
from swarmstep.errors import CollectiveMismatch, UsageError


def apart(world: Comm) -> str:
    """The ranks of an island are at different steps."""
    peers, island = world.split(world.rank % 2), world.split(world.rank // 2)
    sync = Synchronizer(nn.Linear(2, 2), LocalSGD(when=Every(2)), peers, Options(island=island))
    sync._rounds.counts.steps = world.rank % 2 * 2
    sync.step(1.0)
    with pytest.raises(CollectiveMismatch) as caught:
        sync.step(1.0)
    return str(caught.value)


def test_ranks_of_an_island_at_different_steps_are_named() -> None:
    for said in simulate(apart, 4):
        assert "different steps: expected one number, found 2, 4 in rank order" in said


def test_an_island_takes_no_probe() -> None:
    with pytest.raises(UsageError, match="does not go with an island"):
        simulate(lambda comm: Options(island=comm, probe=lambda m, s: 1.0), 1)
