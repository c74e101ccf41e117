"""How a fragment is saved, checked, loaded, and carried over to another group."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from swarmstep.checkpoint import fields
from swarmstep.comm.background import Done
from swarmstep.comm.metered import Traffic
from swarmstep.errors import CheckpointError, SwarmstepError
from swarmstep.ownership import carry
from swarmstep.runtime import pending_round
from swarmstep.runtime.fragment import Fragment
from swarmstep.runtime.pending_round import PendingRound
from swarmstep.runtime.window import Window
from swarmstep.strategies.base import Strategy
from swarmstep.when import NoState

_LANDING = ("window", "rounds", "norm", "phase", "strategy", "state", "pending", "last_seconds")  # changes these


class Loading(NamedTuple):
    """What a fragment takes from a checkpoint, found to fit."""

    pairs: list[tuple[Tensor, Tensor]]  # (tensor, value)
    window: Window
    rounds: int
    norm: float
    phase: int
    state: NamedTuple
    pending: PendingRound | None
    staged: Mapping[str, Tensor]
    followed: Traffic


def save(fragment: Fragment) -> dict[str, Any]:
    """Return what a fragment goes on from; waits for the round under way, which is part of it."""
    result, pending, coded = fragment.settle(), fragment.pending, fragment.coded
    return {
        "window": fragment.window.state_dict(),
        "rounds": fragment.rounds,
        "norm": fragment.norm,
        "phase": fragment.phase,
        "trigger": fields.tensors(fragment.trigger),
        "state": fields.tensors(fragment.state),
        "codec": fields.tensors(coded.state) if coded else {},
        "staged": coded.staged() if coded and pending else {},
        "followed": pending_round.save_traffic(fragment.follow_up.traffic),
        "pending": pending_round.save(pending, result) if pending and result else {},
    }


def check(fragment: Fragment, saved: Mapping[str, Any]) -> Loading:
    """Return what there is to load from what `save` returned; changes nothing.

    Raises:
        CheckpointError: names the field that does not fit.
    """
    part = f"fragment {fragment.index}: " if fragment.context.options.fragments > 1 else ""
    phase = int(fields.field(saved, "phase"))
    strategy, state = _phase(fragment, phase)
    codec = fragment.coded.state._asdict() if fragment.coded else {}
    own: dict[str, dict[str, Tensor]] = {
        "trigger": fragment.trigger._asdict(),
        "state": state._asdict(),
        "codec": codec,
    }
    pairs = [pair for name in own for pair in fields.pairs(part + name, own[name], fields.field(saved, name))]
    staged = dict(fields.field(saved, "staged"))
    fields.pairs("staged", {name: codec[name] for name in staged if name in codec}, staged)
    pending = fields.field(saved, "pending")
    return Loading(
        pairs=pairs,
        window=fragment.window.load(fields.field(saved, "window")),
        rounds=int(fields.field(saved, "rounds")),
        norm=float(fields.field(saved, "norm")),
        phase=phase,
        state=state,
        pending=_check_pending(fragment, pending, strategy, state) if pending else None,
        staged=staged,
        followed=pending_round.load_traffic(fields.field(saved, "followed")),
    )


def load(fragment: Fragment, checked: Loading) -> None:
    """Go on from what `check` returned; the round under way is dropped."""
    with contextlib.suppress(SwarmstepError):
        fragment.settle()
    fragment.follow_up.load(checked.followed)
    fragment.window, fragment.rounds = checked.window, checked.rounds
    fragment.norm, fragment.pending = checked.norm, checked.pending
    fragment.phase, fragment.state = checked.phase, checked.state
    fragment.strategy = fragment.context.strategy.at(checked.phase)
    for tensor, value in checked.pairs:
        tensor.copy_(value)
    if fragment.coded:
        fragment.coded.stage(checked.staged)


@contextlib.contextmanager
def preserved(fragment: Fragment) -> Generator[None]:
    """Let a fragment be what it is again at the end of the context, whatever lands meanwhile; but for the weights.

    Waits for the round under way, which then is as it was, too. Communicates with nobody.
    """
    result, pending, coded = fragment.settle(), fragment.pending, fragment.coded
    staged, traffic = coded.staged() if coded and pending else {}, fragment.follow_up.traffic
    attributes = {name: getattr(fragment, name) for name in _LANDING}
    tensors = [*fragment.state, *(coded.state if coded else ())]
    values = [tensor.clone() for tensor in tensors]
    if pending and result:
        message = result.message._replace(**fields.tensors(result.message))
        spare = result._replace(message=message, buffers=result.buffers.clone())
        attributes["pending"] = replace(pending, pending=Done(lambda: spare))
    try:
        yield
    finally:
        with contextlib.suppress(SwarmstepError):
            fragment.settle()
        fragment.follow_up.load(traffic)
        for name, value in attributes.items():
            setattr(fragment, name, value)
        for tensor, value in zip(tensors, values, strict=True):
            tensor.copy_(value)
        if coded:
            coded.stage(staged)


def carry_over(fragment: Fragment, saved: Mapping[str, Any], sources: Sequence[int | None]) -> None:
    """Go on in a changed group from what a fragment of the group before was.

    Args:
        fragment: new, in the changed group.
        saved: what `save` returned on this worker or, for a newcomer, on another member.
        sources: for each rank of the changed group its rank in the one before, None for a newcomer.

    Raises:
        CheckpointError: a round was under way.
    """
    rank = fragment.context.comm.rank
    if fields.field(saved, "pending"):
        raise CheckpointError(
            "a round was under way when the checkpoint was written; go on with as many workers as it has"
        )
    fragment.phase = int(fields.field(saved, "phase"))
    fragment.strategy, fragment.state = _phase(fragment, fragment.phase)
    codec = fragment.coded.state if fragment.coded else NoState()
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, fresh, rule in (
        ("trigger", fragment.trigger, carry),
        ("state", fragment.state, fragment.strategy.carry),
        ("codec", codec, carry),
    ):
        old = fields.field(saved, name)
        fields.same(f"fields of {name}", sorted(fresh._fields), sorted(old))
        carried = rule(fresh._replace(**old), fresh, sources, rank)
        pairs += zip(fresh, carried, strict=True)
    for tensor, value in pairs:
        tensor.copy_(value)
    window = fragment.window.load(fields.field(saved, "window"))
    if fragment.context.strategy.when.timed:  # it counts by its own steps, and goes on by the clock of that member
        fragment.window.seconds = window.seconds
    else:
        fragment.window.weight = window.weight  # a newcomer counts as much as the member whose state it takes
    fragment.rounds = int(fields.field(saved, "rounds"))
    if sources[rank] is not None:
        fragment.window = window
        fragment.norm = float(fields.field(saved, "norm"))


def _phase(fragment: Fragment, phase: int) -> tuple[Strategy, NamedTuple]:
    """Return the strategy that runs the rounds at a step, with a state to be filled."""
    context = fragment.context
    strategy = context.strategy.at(phase)
    if strategy is fragment.strategy:
        return strategy, fragment.state
    return strategy, strategy.init(context.flat.read(fragment.index), fragment.layout, fragment.comm)


def _check_pending(
    fragment: Fragment, saved: Mapping[str, Any], strategy: Strategy, state: NamedTuple
) -> PendingRound:
    x, layout = fragment.context.flat.read(fragment.index), fragment.layout
    pending = pending_round.load(saved, strategy, x, fragment.context.comm.size, layout.parameters)
    state = state._replace(**fields.tensors(state))
    strategy.apply(x, state, pending.pending.result().message, layout)  # on copies: raises if it does not fit
    return pending
