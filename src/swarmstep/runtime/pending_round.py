"""A round under way: what it needs, what it brings, and how a checkpoint holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.comm.background import Done, Pending
from swarmstep.comm.group import KEPT, Decision
from swarmstep.comm.metered import Call, Traffic
from swarmstep.runtime.optimizer_state import NO_MEANS, Means
from swarmstep.signal import Roll
from swarmstep.strategies.base import Strategy

_PER_WORKER = ("rounds", "steps", "losses", "weights")  # columns of a roll, [W] float64


class RoundResult(NamedTuple):
    """What a round brings: everything that changes weights and state."""

    roll: Roll
    message: NamedTuple
    buffers: Tensor  # of the first worker that takes part where the policy is "first", else this worker's
    traffic: Traffic
    probe_seconds: float
    wait_seconds: float  # in the roll call
    send_seconds: float  # in the exchange and the decision
    decision: Decision = KEPT
    inner: Means = NO_MEANS  # of optimizers' states; never of a round that lands late


@dataclasses.dataclass
class PendingRound:
    """A round under way."""

    lands: int  # at which step
    x: Tensor  # what it started from: the live vector without a delay, else a copy
    pending: Pending[RoundResult]
    seconds: float  # that the training has spent on it
    ahead: Tensor | None = None  # what this worker went on from, where it is not x

    @property
    def left(self) -> Tensor:
        """The vector that this worker's local steps have gone on from while the round travels."""
        return self.x if self.ahead is None else self.ahead


def save(pending: PendingRound, result: RoundResult) -> dict[str, Any]:
    """Return a round that has its result and has not landed, as numbers and tensors."""
    roll = result.roll
    return {
        "lands": pending.lands,
        "x": pending.x.clone(),
        "roll": {field.name: getattr(roll, field.name) for field in dataclasses.fields(roll)},
        "message": fields.tensors(result.message),
        "buffers": result.buffers.clone(),
        **save_traffic(result.traffic),
        **({} if pending.ahead is None else {"ahead": pending.ahead.clone()}),
        "seconds": [pending.seconds, result.probe_seconds, result.wait_seconds, result.send_seconds],
    }


def load(saved: Mapping[str, Any], strategy: Strategy, like: Tensor, size: int, parameters: int) -> PendingRound:
    """Return the round that `saved` describes, as copies; it has its result.

    Args:
        saved: from `save`.
        strategy: whose round it is.
        like: the fragment of x, which what is saved must fit.
        size: of the group.
        parameters: how many elements of x are parameters.

    Raises:
        CheckpointError: a field is missing or does not fit.
    """
    names = ("roll", "message", "x", "buffers", "seconds", "lands")
    parts = {name: fields.field(saved, name) for name in names}
    vectors = {"x": like, "buffers": like[parameters:]}
    if "ahead" in saved:
        parts["ahead"], vectors["ahead"] = saved["ahead"], like
    fields.pairs("pending", vectors, {name: parts[name] for name in vectors})
    spent, *seconds = (float(value) for value in parts["seconds"])
    probe_seconds, wait_seconds, send_seconds = seconds
    result = RoundResult(
        roll=_load_roll(parts["roll"], size),
        message=_load_message(parts["message"], strategy, like, size),
        buffers=parts["buffers"].clone(),
        traffic=load_traffic(saved),
        probe_seconds=probe_seconds,
        wait_seconds=wait_seconds,
        send_seconds=send_seconds,
    )
    ahead = parts["ahead"].clone() if "ahead" in parts else None
    return PendingRound(int(parts["lands"]), parts["x"].clone(), Done(lambda: result), spent, ahead)


def save_traffic(traffic: Traffic) -> dict[str, Any]:
    """Return traffic as numbers and strings."""
    return {"bytes": [traffic.sent, traffic.received], "calls": [list(call) for call in traffic.calls]}


def load_traffic(saved: Mapping[str, Any]) -> Traffic:
    """Return what `save_traffic` described."""
    sent, received = (int(count) for count in fields.field(saved, "bytes"))
    calls = [Call(str(verb), int(nbytes), int(size)) for verb, nbytes, size in fields.field(saved, "calls")]
    return Traffic(sent, received, calls)


def _load_roll(saved: Mapping[str, Any], size: int) -> Roll:
    columns = {field.name: fields.field(saved, field.name).clone() for field in dataclasses.fields(Roll)}
    each = torch.zeros(size, dtype=torch.float64)
    expected = {**dict.fromkeys(_PER_WORKER, each), "seconds": each[:, None].expand(size, 3)}
    fields.pairs("pending.roll", expected, {name: columns[name] for name in expected})
    fields.same("pending.roll.reports", (size,), tuple(columns["reports"].shape[:1]))
    return Roll(**columns)


def _load_message(saved: Mapping[str, Any], strategy: Strategy, like: Tensor, size: int) -> NamedTuple:
    kind = get_type_hints(type(strategy).exchange)["return"]
    fields.same("fields of pending.message", sorted(kind._fields), sorted(saved))
    message = kind(**{name: tensor.clone() for name, tensor in saved.items()})
    for name, tensor in message._asdict().items():  # vectors [P], numbers for each worker [W, ...], or one number
        if tensor.dim() and tensor.shape[:1] != (size,):
            fields.same(f"pending.message.{name}", (like.dtype, like.shape), (tensor.dtype, tensor.shape))
    return message
