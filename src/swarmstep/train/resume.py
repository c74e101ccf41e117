"""A run goes on from a checkpoint, with as many workers as then or with others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from swarmstep.errors import CheckpointError
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.synchronizer import Synchronizer
from swarmstep.train.config import FREE, Config
from swarmstep.train.feed import Feed


def restore(
    config: Config,
    states: Mapping[int, dict[str, Any]],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    sync: Synchronizer,
    feed: Feed,
) -> dict[str, Any]:
    """Load this rank's part of a checkpoint, and return it.

    With another number of workers the first ranks go on as they were. One that is new starts at the mean of the
    workers then, as a new particle, with the optimizer's state of rank 0.

    Args:
        config: of this run; must be that of the checkpoint, but for `FREE`.
        states: by rank, as they were saved: of all ranks then, or where the number is as it was, of this one.
        model: to load into.
        optimizer: to load into.
        sync: to load into.
        feed: to load into.

    Raises:
        CheckpointError: names what differs.
    """
    rank, size = sync.comm.rank, sync.comm.size
    before = int(next(iter(states.values()))["sync"]["configuration"]["world size"])
    mine = states[rank if rank < before else 0]
    for field, expected in dataclasses.asdict(config).items():
        found = mine["config"][field]
        if field not in FREE and found != expected:
            raise CheckpointError(
                f"checkpoint: {field}: expected {expected!r}, found {found!r}; it is of another run"
            )
    model.load_state_dict(mine["model"])
    if rank >= before:
        flat = Flat(model)
        total = flat.read().zero_()
        for state in states.values():
            model.load_state_dict(state["model"])
            total += flat.read()
        model.load_state_dict(mine["model"])
        flat.write(total / before)
    optimizer.load_state_dict(mine["optimizer"])
    sources = tuple(r if r < before else None for r in range(size)) if before != size else ()
    sync.load_state_dict(mine["sync"], sources)
    feed.load_state_dict(mine["feed"])
    if sources:
        feed.change(Config(**mine["config"]), dataclasses.replace(sync.change(0.0), sources=sources))
    return mine
