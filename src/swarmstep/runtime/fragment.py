"""The rounds of one part of the model: started, under way, landed."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from swarmstep import fault_points
from swarmstep.checkpoint import fields
from swarmstep.comm.background import Done, Pending
from swarmstep.comm.base import Comm
from swarmstep.comm.coded import Coded
from swarmstep.errors import CheckpointError, NotFinite, SwarmstepError
from swarmstep.ownership import carry
from swarmstep.runtime import pending_round
from swarmstep.runtime.pending_round import Now, PendingRound, RoundContext, RoundResult
from swarmstep.runtime.probe import Probe
from swarmstep.runtime.roll_call import GROWTH, RankStatus, RollCall, call_roll, reported_loss
from swarmstep.runtime.window import Window
from swarmstep.signal import Distrust, Roll, Round, Signal
from swarmstep.strategies.base import Strategy
from swarmstep.when import NoState


class Loading(NamedTuple):
    """What a lane takes from a checkpoint, found to fit."""

    pairs: list[tuple[Tensor, Tensor]]  # (tensor, value)
    window: Window
    rounds: int  # that have landed
    norm: float  # of the parameters after the last one
    phase: int
    state: NamedTuple
    flight: PendingRound | None
    staged: Mapping[str, Tensor]


class Fragment:
    """One fragment of x: its state, its losses since the last round, and the round under way.

    Args:
        setting: common to all lanes.
        index: which fragment.
        x: that part of the weights all workers start from.
    """

    def __init__(self, setting: RoundContext, index: int, x: Tensor) -> None:
        options, strategy = setting.options, setting.strategy
        self.setting = setting
        self.index = index
        self.layout = setting.flat.fragments[index]
        self._metered = setting.comm.reusing()
        self._wire = None
        if options.codec:
            referenced = strategy.common != "none"
            self._wire = Coded(self._metered, options.codec, x, referenced=referenced, reuse=True)
        self._comm: Comm = self._wire or self._metered
        self.trigger = strategy.when.init(self.layout, setting.comm.size)
        self._offset = index * strategy.when.period // options.fragments
        # The step that `strategy.at` was last asked for, and its answer: it runs the rounds, and has a state.
        self._phase = 1
        self.strategy = strategy.at(self._phase)
        self.state = self.strategy.init(x, self.layout, self._comm)
        # Steps from the start of a round to that of the next, at least: a vote waits until the round has landed.
        self._apart = max(1, options.delay) if strategy.when.voting else 1
        self._copies: dict[str, Tensor] = {}
        self._window = Window(x.device, setting.comm.clock())
        self._rounds = 0  # that have landed, the same on all ranks
        self._spent = (0.0, 0.0)  # seconds of the last round in its roll call, and after it
        self._norm = float(x[: self.layout.parameters].norm())  # of the parameters after the last round
        self.flight: PendingRound | None = None
        started = {"target": "weights", "fragment": index, "x": x}
        fault_points.reach(fault_points.STARTED, **started)

    def note(self, loss: Tensor | float, weight: float) -> None:
        """Count a local step."""
        self._window.note(loss, weight)

    def wishes(self, step: int, lr: float | None) -> bool:
        """Ask the trigger, once a step; each fragment's steps are shifted by its share of the period."""
        if step <= self._offset:
            return False
        signal = self._signal(step - self._offset, lr, self._window)
        return self.setting.strategy.when.due(self.trigger, signal)

    def open(self, now: Now) -> Tensor:
        """Return the weights a round starts from: the live ones, or a copy where a fault may change them."""
        flat = self.setting.flat
        if now.finished or not fault_points.watched():
            return flat.open(self.index)
        x = flat.read(self.index)
        own = x[: self.layout.parameters]
        fault_points.reach(fault_points.ROUND_OPENED, target="weights", fragment=self.index, step=now.step, x=own)
        if self.setting.options.delay:  # this worker goes on from what it has sent
            flat.close(x, self.index)
        return x

    def call(self, now: Now) -> RollCall:
        """Call the roll before a round that may not be due, or not be of this fragment."""
        return self._call(self.setting.flat.open(self.index), now, self._window)

    def _call(self, x: Tensor, now: Now, window: Window) -> RollCall:
        status = self._status(x, now, window)
        comm = self.setting.heard or self._metered
        fault_points.reach(fault_points.ROLL_CALL)
        began = comm.clock()
        called = call_roll(status, comm, self.setting.island, self.setting.options.fragments)
        self._spent = comm.clock() - began, self._spent[1]
        fault_points.reach(fault_points.ROLL_CALLED)
        _check_finite(called.roll, now.step, self.strategy)
        return called

    def _status(self, x: Tensor, now: Now, window: Window) -> RankStatus:
        """Return what this worker reports at a roll call."""
        reports = self.strategy.report(x, self.state, self.layout)
        loss = reported_loss(
            math.inf if now.finished else window.mean_loss(), x, self.layout.parameters, self._norm
        )
        if now.finished:
            return RankStatus(0, 0, loss, 0.0, (0.0, *self._spent), False, self.index, tuple(0.0 for _ in reports))
        seconds = self.setting.comm.clock() - window.began, *self._spent
        return RankStatus(self._rounds + 1, now.step, loss, window.weight, seconds, now.wish, self.index, reports)

    def start(self, x: Tensor, now: Now, called: RollCall | None = None) -> None:
        """Start a round from x: in the background if there is a delay, and this worker has not finished.

        Args:
            x: from `open`.
            now: where this worker is.
            called: the roll, if it has been called.
        """
        began = self.setting.comm.clock()
        delay = 0 if now.finished else self.setting.options.delay
        window = self._window
        if delay:
            x = self._copied(x, "start")
            self._window = window.next(began)
        task = functools.partial(self._travel, x, now, window, called)
        pending: Pending[RoundResult | None] = self._metered.start(task) if delay else Done(task)
        self.flight = PendingRound(now.step + delay, x, pending, self.setting.comm.clock() - began)

    def _travel(self, x: Tensor, now: Now, window: Window, called: RollCall | None) -> RoundResult | None:
        """Do all of the round's collectives, which change nothing; None if nobody wishes a round."""
        setting, probe = self.setting, self.setting.probe
        self._metered.recycle()
        if self._wire:
            self._wire.recycle()
            self._wire.discard()
        called = called or self._call(x, now, window)
        if not called.due:
            return None
        roll, step, began = called.roll, int(called.roll.steps.max()), setting.comm.clock()
        probed = probe.seconds if probe else 0.0
        signal = self._signal(step, now.lr, window)
        buffers = x[self.layout.parameters :].clone()
        with self._metered.counting() as traffic:
            message = self.strategy.exchange(x, self.state, signal, roll, self._comm)
            if setting.buffers == "first" and len(buffers):
                buffers = self._metered.broadcast(buffers, int(roll.present.int().argmax()))
        probing = probe.seconds - probed if probe else 0.0
        fault_points.reach(fault_points.EXCHANGED)
        decision = setting.comm.decide()
        self._spent = self._spent[0], setting.comm.clock() - began
        fault_points.reach(fault_points.DECIDED)
        return RoundResult(roll, message, buffers, called.traffic + traffic, probing, decision)

    def _signal(self, step: int, lr: float | None, window: Window) -> Signal:
        setting = self.setting
        probe = setting.probe if setting.options.fragments == 1 else None
        return Signal(
            step=step,
            seed=setting.options.seed,
            lr=lr,
            loss=window.mean_loss,
            gradient=setting.flat.gradient,
            probe=functools.partial(probe, step=step) if probe else None,
            layout=self.layout,
            probe_cost=self._probe_cost(probe, window) if probe else 0.0,
            rank=setting.comm.rank,
        )

    def _probe_cost(self, probe: Probe, window: Window) -> float:
        """Return the cost of a probe in local steps, measured over the steps since the last round."""
        given = self.setting.options.probe_cost
        if given is not None or not window.steps:
            return given or 0.0
        return probe.last / max(1e-9, (self.setting.comm.clock() - window.began) / window.steps)

    def settle(self) -> RoundResult | None:
        """Wait for the round under way; it lands later."""
        return self.flight.pending.result() if self.flight else None

    def land(self) -> Round | None:
        """Wait for the round under way, and let it change the weights and the state; None if there was none."""
        under_way, began = self.flight, self.setting.comm.clock()
        if under_way is None:
            return None
        self.flight = None
        arrived = under_way.pending.result()
        if arrived is None:
            return None
        strategy, left_out = self.strategy, self._write(under_way, arrived)
        ended = self.setting.comm.clock()
        self._rounds += 1
        if not self.setting.options.delay:
            self._window = self._window.next(ended)
        compute, wait, send = (tuple(column.tolist()) for column in arrived.roll.seconds.unbind(1))
        return Round(
            step=arrived.step,
            strategy=type(strategy).__name__,
            fragment=self.index,
            participants=len({*arrived.roll.present.nonzero().view(-1).tolist()} - {w.rank for w in left_out}),
            losses=tuple(arrived.roll.losses.tolist()),
            weights=tuple(arrived.roll.weights.tolist()),
            compute_seconds=compute,
            wait_seconds=wait,
            send_seconds=send,
            bytes_sent=arrived.traffic.sent,
            bytes_received=arrived.traffic.received,
            calls=tuple(arrived.traffic.calls),
            seconds=under_way.seconds + ended - began,
            probe_seconds=arrived.probe_seconds,
            distrusted=left_out,
            epoch=self.setting.comm.epoch,
            members=self.setting.comm.names,
            decision=arrived.decision,
        )

    def _copied(self, x: Tensor, name: str) -> Tensor:
        """Return a copy of x, in memory that the next copy of this name uses again."""
        if name not in self._copies:
            self._copies[name] = torch.empty_like(x)
        return self._copies[name].copy_(x)

    def _write(self, under_way: PendingRound, arrived: RoundResult) -> tuple[Distrust, ...]:
        """Move the weights and the state by what arrived; return who was left out."""
        fault_points.reach(fault_points.LANDING)
        flat, options, n = self.setting.flat, self.setting.options, self.layout.parameters
        strategy = self.strategy
        assigned = not options.delay and options.mix is None
        y = under_way.x if assigned else self._copied(under_way.x, "end")
        agreed = strategy.consensus(y, arrived.message)
        buffers = agreed[n:].clone() if self.setting.buffers == "mean" else arrived.buffers
        strategy.apply(y, self.state, arrived.message, self.layout)
        common = agreed if strategy.common == "consensus" else y
        if self._wire:
            self._wire.commit(common)
        left_out = strategy.distrusted(self.state)
        self._turn(arrived.step + self._apart, common)
        y[n:] = buffers
        if assigned:
            flat.close(y, self.index)
        else:
            x = flat.open(self.index)
            if self.setting.buffers != "local":
                x[n:] = y[n:]
            if self._astray(arrived.roll, left_out):
                x.copy_(y)
            elif options.mix is None:
                x[:n] += y[:n].sub_(under_way.x[:n])
            else:
                x[:n].mul_(options.mix).add_(y[:n], alpha=1.0 - options.mix)
            flat.close(x, self.index)
        self._norm = float(flat.open(self.index)[:n].norm())
        return left_out

    def _turn(self, step: int, common: Tensor) -> None:
        """Let the strategy of this step take its turn, from the vector that is common to all ranks."""
        self._phase, before = step, self.strategy
        self.strategy = self.setting.strategy.at(step)
        if self.strategy is not before:
            self.state = self.strategy.init(common, self.layout, self._comm)

    def _astray(self, roll: Roll, left_out: Sequence[Distrust]) -> bool:
        """Return whether this worker was left out: it takes the others' weights, and keeps nothing of its own."""
        rank = self.setting.comm.rank
        return bool(roll.losses[rank].isnan()) or any(worker.rank == rank for worker in left_out)

    def state_dict(self) -> dict[str, Any]:
        """Return what to go on from, a round under way included, for whose arrival it waits."""
        arrived = self.settle()
        return {
            "window": self._window.state_dict(),
            "rounds": self._rounds,
            "norm": self._norm,
            "phase": self._phase,
            "trigger": fields.tensors(self.trigger),
            "state": fields.tensors(self.state),
            "wire": fields.tensors(self._wire.state) if self._wire else {},
            "staged": self._wire.staged() if self._wire and self.flight else {},
            "flight": pending_round.saved(self.flight, arrived) if self.flight and arrived else {},
        }

    def checked(self, saved: Mapping[str, Any]) -> Loading:
        """Return what there is to load, having found that it fits.

        Raises:
            CheckpointError: names the field that differs.
        """
        part = f"fragment {self.index}: " if self.setting.options.fragments > 1 else ""
        phase = int(fields.field(saved, "phase"))
        strategy, state = self._state_at(phase)
        mine: dict[str, dict[str, Tensor]] = {
            "trigger": self.trigger._asdict(),
            "state": state._asdict(),
            "wire": self._wire.state._asdict() if self._wire else {},
        }
        pairs = [
            pair for name in mine for pair in fields.pairs(part + name, mine[name], fields.field(saved, name))
        ]
        staged = dict(fields.field(saved, "staged"))
        kinds = self._wire.state._asdict() if self._wire else {}
        fields.pairs("staged", {name: kinds[name] for name in staged if name in kinds}, staged)
        flying = fields.field(saved, "flight")
        under_way = self._checked_flight(flying, strategy, state) if flying else None
        window = self._window.checked(fields.field(saved, "window"))
        rounds, norm = int(fields.field(saved, "rounds")), float(fields.field(saved, "norm"))
        return Loading(pairs, window, rounds, norm, phase, state, under_way, staged)

    def _state_at(self, phase: int) -> tuple[Strategy, NamedTuple]:
        """Return the strategy whose turn it is at a step, with a state to be filled."""
        strategy = self.setting.strategy.at(phase)
        if strategy is self.strategy:
            return strategy, self.state
        return strategy, strategy.init(self.setting.flat.read(self.index), self.layout, self._comm)

    def _checked_flight(self, flying: Mapping[str, Any], strategy: Strategy, state: NamedTuple) -> PendingRound:
        x, size = self.setting.flat.read(self.index), self.setting.comm.size
        found = pending_round.loaded(flying, strategy, x, size, self.layout.parameters)
        arrived = found.pending.result()
        assert arrived is not None
        state = state._replace(**fields.tensors(state))
        strategy.apply(x, state, arrived.message, self.layout)  # on copies: raises if it does not fit
        return found

    def succeed(self, saved: Mapping[str, Any], sources: Sequence[int | None]) -> None:
        """Go on, in a changed group, from what a lane of the group before was; no round was under way in it.

        Args:
            saved: `state_dict` of this worker's, or for a newcomer that of a healthy member's.
            sources: as in `Comm`, of this group.

        Raises:
            CheckpointError: a round was under way.
        """
        rank = self.setting.comm.rank
        if fields.field(saved, "flight"):
            raise CheckpointError(
                "a round was under way when the checkpoint was written; go on with as many workers as it has"
            )
        self._phase = int(fields.field(saved, "phase"))
        self.strategy, self.state = self._state_at(self._phase)
        wire = self._wire.state if self._wire else NoState()
        pairs: list[tuple[Tensor, Tensor]] = []
        for name, fresh, rule in (
            ("trigger", self.trigger, carry),
            ("state", self.state, self.strategy.carry),
            ("wire", wire, carry),
        ):
            theirs = fields.field(saved, name)
            fields.same(f"fields of {name}", sorted(fresh._fields), sorted(theirs))
            carried = rule(fresh._replace(**theirs), fresh, sources, rank)
            pairs += zip(fresh, carried, strict=True)
        for tensor, value in pairs:
            tensor.copy_(value)
        self._rounds = int(fields.field(saved, "rounds"))
        if sources[rank] is not None:
            self._window = self._window.checked(fields.field(saved, "window"))
            self._norm = float(fields.field(saved, "norm"))

    def load(self, checked: Loading) -> None:
        """Go on from what `checked` returned; what is under way is given up."""
        with contextlib.suppress(SwarmstepError):
            self.settle()
        self._window, self._rounds, self._norm = checked.window, checked.rounds, checked.norm
        self.flight = checked.flight
        self._phase, self.state = checked.phase, checked.state
        self.strategy = self.setting.strategy.at(self._phase)
        for tensor, value in checked.pairs:
            tensor.copy_(value)
        if self._wire:
            self._wire.stage(checked.staged)


def _check_finite(roll: Roll, step: int, strategy: Strategy) -> None:
    bad = roll.losses.isnan().nonzero().view(-1).tolist()
    if bad and (len(bad) == len(roll.losses) or not strategy.contains_not_finite):
        raise NotFinite(
            f"step {step}: the weights of rank {', '.join(map(str, bad))} are not finite, or {GROWTH:g} times as "
            f"large as after the last round, and {type(strategy).__name__} cannot contain that; lower the "
            "learning rate, clip gradients, or look at that rank's data"
        )
