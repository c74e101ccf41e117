"""Checkpoints of a training loop of one's own: what is in them, and how a run goes on from them."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep.checkpoint import fields, loader, saver
from swarmstep.checkpoint.folder import steps_in
from swarmstep.comm.dist import DistComm
from swarmstep.comm.group import Group
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.options import Stateful


def check_things(call: str, things: Sequence[object], model: nn.Module) -> None:
    """Raise UsageError unless the model is among the things, and all can be saved and loaded."""
    if not any(thing is model for thing in things):
        raise UsageError(
            f"{call}: expected the model that the Synchronizer was given among the things, and what else goes on "
            "with it: the optimizer, say"
        )
    for thing in things:
        if not all(callable(getattr(thing, name, None)) for name in ("state_dict", "load_state_dict")):
            raise UsageError(
                f"{call}: expected things with state_dict and load_state_dict, found {type(thing).__name__}"
            )


def state_of(model: nn.Module, things: Sequence[Stateful]) -> dict[str, Any]:
    """Return the states of the model and of all other things, with the names of their types.

    Raises:
        UsageError: one holds something that could not be read as data.
    """
    others = [[type(thing).__name__, thing.state_dict()] for thing in things if thing is not model]
    for kind, state in others:
        buffer = io.BytesIO()
        try:
            torch.save(_without_tensors(state), buffer)
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        except Exception as error:  # whatever is in it
            raise UsageError(
                f"Synchronizer.save: the state of {kind} is no data: expected numbers, texts, tensors, and lists "
                f"and dictionaries of them ({str(error).strip().splitlines()[0]})"
            ) from error
    return {"model": model.state_dict(), "others": others}


def _without_tensors(value: Any) -> Any:
    if isinstance(value, Tensor):
        return None
    if type(value) in (dict, OrderedDict):
        return {key: _without_tensors(inner) for key, inner in value.items()}
    return [_without_tensors(inner) for inner in value] if type(value) in (list, tuple) else value


def write(folder: Path, step: int, state: Mapping[str, Any], comm: Group, keep: int) -> None:
    """Write this rank's file; in an elastic group without waiting for others.

    Raises:
        CheckpointError: this rank could not write, or another that is waited for.
    """
    if not comm.elastic:
        saver.save(folder, int(comm.gather(torch.tensor(step)).max()), state, comm, keep)
        return
    assert isinstance(comm, DistComm)
    assert comm.membership
    writer = saver.Saver(folder, keep)
    writer.start(step, state, comm.rank, comm.size, comm.membership.mark)
    writer.settle()
    writer.prune(comm.membership.saved_by_all(step))


def read(folder: Path, comm: Group) -> dict[int, dict[str, Any]]:
    """Return states by rank: this rank's, or all if their number was another; none if there is no checkpoint.

    Raises:
        CheckpointError: there are checkpoints, and none that is complete.
    """
    if comm.elastic:
        step, states = loader.load_any(folder) if steps_in(folder) else (0, [])
        loader.check_same_step(folder, step, comm)
        return dict(enumerate(states))
    if not comm.gather(torch.tensor(bool(steps_in(folder)))).any():
        return {}
    return loader.load_own_or_all(folder, comm)


def restore(
    states: Mapping[int, dict[str, Any]], model: nn.Module, things: Sequence[Stateful], comm: Group, folder: Path
) -> tuple[dict[str, Any], tuple[int | None, ...]]:
    """Load the model and the other things; return the Synchronizer's state, and the sources that go with it.

    Raises:
        CheckpointError: names what differs.
    """
    try:
        first = next(iter(states.values()))
        before = int(first["sync"]["configuration"]["world size"])
        state = states[comm.rank if comm.rank < before else 0]
        others = [thing for thing in things if thing is not model]
        found = [kind for kind, _ in state["others"]]
        fields.same(f"{folder}: things beside the model", [type(thing).__name__ for thing in others], found)
        load_model(model, {rank: saved["model"] for rank, saved in states.items()}, comm.rank)
        for thing, (_, saved) in zip(others, state["others"], strict=True):
            thing.load_state_dict(saved)
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())
        raise CheckpointError(f"{folder}: does not fit this program: {why}; start anew") from error
    return state["sync"], sources_of(before, comm.size)


def sources_of(before: int, size: int) -> tuple[int | None, ...]:
    """Return `sources` of `Synchronizer.load_state_dict`, where a run of `before` workers goes on with `size`."""
    return tuple(r if r < before else None for r in range(size)) if before != size else ()


def load_model(model: nn.Module, saved: Mapping[int, dict[str, Any]], rank: int) -> None:
    """Load this rank's model; a rank that is new takes the mean of all, and rank 0's where there is no mean.

    Args:
        model: to be changed.
        saved: state dicts by rank: all ranks', unless this one's is among them.
        rank: of this worker.
    """
    model.load_state_dict(saved[rank if rank in saved else 0])
    if rank in saved:
        return
    flat = Flat(model)
    total = flat.read().zero_()
    for state in saved.values():
        model.load_state_dict(state)
        total += flat.read()
    model.load_state_dict(saved[0])
    flat.write(total / len(saved))
