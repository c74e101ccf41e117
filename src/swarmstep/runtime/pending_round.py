"""A round under way: what it needs, what it brings, and how a checkpoint holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.comm.background import Done, Pending
from swarmstep.comm.base import Comm
from swarmstep.comm.group import KEPT, Decision
from swarmstep.comm.metered import Call, Metered, Traffic
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.options import Options
from swarmstep.runtime.probe import Probe
from swarmstep.signal import Roll
from swarmstep.strategies.base import Strategy


@dataclasses.dataclass(frozen=True)
class RoundContext:
    """What all lanes of a Synchronizer have in common.

    `comm` carries the rounds, with groups of its own if they travel in the background. The roll is called there,
    too, and in the `island`; on `heard`, if given, where it is called at every step.
    """

    strategy: Strategy
    options: Options
    buffers: str
    flat: Flat
    comm: Metered
    heard: Metered | None
    island: Comm | None
    probe: Probe | None


class Now(NamedTuple):
    """Where a worker is when a round is called, and with what wish."""

    step: int
    lr: float | None
    wish: bool
    finished: bool = False


class RoundResult(NamedTuple):
    """What a round brought: everything `land` needs beside the state."""

    roll: Roll
    message: NamedTuple
    buffers: Tensor  # of the first present rank where the policy is "first", else this worker's
    traffic: Traffic
    probe_seconds: float
    decision: Decision = KEPT

    @property
    def step(self) -> int:
        """At which the workers that take part started it."""
        return int(self.roll.steps.max())


@dataclasses.dataclass
class PendingRound:
    """A round under way."""

    lands: int  # at which step
    x: Tensor  # the weights it started from: the live ones without a delay, else a copy
    pending: Pending[RoundResult | None]
    seconds: float  # that the training has spent on it


def saved(flight: PendingRound, arrived: RoundResult) -> dict[str, Any]:
    """Return a round that has arrived and not landed, as numbers and tensors."""
    roll = arrived.roll
    return {
        "lands": flight.lands,
        "seconds": flight.seconds,
        "x": flight.x.clone(),
        "roll": {field.name: getattr(roll, field.name) for field in dataclasses.fields(roll)},
        "message": fields.tensors(arrived.message),
        "buffers": arrived.buffers.clone(),
        "bytes": [arrived.traffic.sent, arrived.traffic.received],
        "calls": [list(call) for call in arrived.traffic.calls],
        "probe_seconds": arrived.probe_seconds,
    }


def loaded(saved: Mapping[str, Any], strategy: Strategy, like: Tensor, size: int, parameters: int) -> PendingRound:
    """Return the round that `saved` describes, as copies; it has arrived.

    Args:
        saved: from `saved`.
        strategy: whose round it is.
        like: this part of x, which what is saved must fit.
        size: of the group.
        parameters: how many elements of x are parameters.

    Raises:
        CheckpointError: a field is missing or does not fit.
    """
    parts = {name: fields.field(saved, name) for name in ("roll", "message", "bytes", "calls", "x", "buffers")}
    columns = {field.name: fields.field(parts["roll"], field.name).clone() for field in dataclasses.fields(Roll)}
    each = torch.zeros(size, dtype=torch.float64)
    expected = {
        **dict.fromkeys(("rounds", "steps", "losses", "weights"), each),
        "seconds": torch.zeros(size, 3, dtype=torch.float64),
    }
    fields.pairs("flight.roll", expected, {name: columns[name] for name in expected})
    fields.same("flight.roll.reports", (size,), tuple(columns["reports"].shape[:1]))
    ours = {"x": like, "buffers": like[parameters:]}
    fields.pairs("flight", ours, {name: parts[name] for name in ours})
    roll = Roll(**columns)
    kind = get_type_hints(type(strategy).exchange)["return"]
    fields.same("fields of flight.message", sorted(kind._fields), sorted(parts["message"]))
    message = kind(**{name: tensor.clone() for name, tensor in parts["message"].items()})
    for name, tensor in message._asdict().items():  # vectors [P], numbers a worker [W], or single numbers
        if tensor.dim() and tensor.shape != (size,):
            fields.same(f"flight.message.{name}", (like.dtype, like.shape), (tensor.dtype, tensor.shape))
    sent, received = (int(count) for count in parts["bytes"])
    calls = [Call(str(verb), int(octets), int(ranks)) for verb, octets, ranks in parts["calls"]]
    probing, lands = float(fields.field(saved, "probe_seconds")), int(fields.field(saved, "lands"))
    arrived = RoundResult(roll, message, parts["buffers"].clone(), Traffic(sent, received, calls), probing)
    return PendingRound(lands, parts["x"].clone(), Done(lambda: arrived), float(fields.field(saved, "seconds")))
