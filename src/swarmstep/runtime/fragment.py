"""One fragment of the model: the trigger that opens its rounds, its state, and the round under way."""

from __future__ import annotations

import dataclasses
import functools
import math

import torch
from torch import Tensor

from swarmstep import fault_points
from swarmstep.comm.background import Done, Pending
from swarmstep.comm.base import Comm
from swarmstep.comm.coded import Coded
from swarmstep.errors import CommError
from swarmstep.runtime.averaged import with_means
from swarmstep.runtime.follow_up import FollowUp
from swarmstep.runtime.learning_rate import of_elements
from swarmstep.runtime.pending_round import PendingRound, RoundResult
from swarmstep.runtime.roll_call import RankStatus, RollCall, call_roll, check_finite, reported_loss
from swarmstep.runtime.round_context import RoundContext, StepContext
from swarmstep.runtime.travelling import Live
from swarmstep.runtime.window import Window
from swarmstep.signal import Distrust, Round


class Fragment:
    """One fragment of x and its rounds.

    Args:
        context: common to all fragments.
        index: which fragment.
        x: that part of the weights all workers start from.

    Attributes:
        layout: of the vector that rounds change: this part of x, or its gradient.
        coded: the Comm that codes the rounds' vectors (None: there is no codec).
        trigger: the trigger's state.
        phase: the step that `Strategy.at` was last asked for.
        strategy: its answer, which runs the rounds.
        state: the state of that strategy.
        rounds: how many rounds have landed; the same on all ranks.
        window: the local steps since the last round.
        norm: of the parameters after the last round.
        pending: the round under way (None: there is none).
        follow_up: what the last round still sends.
        last_seconds: that the last round spent in the roll call, and in the exchange.
    """

    def __init__(self, context: RoundContext, index: int, x: Tensor) -> None:
        options, strategy = context.options, context.strategy
        self.context, self.index = context, index
        self.layout = context.vector.fragments[index]
        self._live = Live(context, index, self.layout)
        self._metered = context.comm.reusing()
        self.follow_up = FollowUp(self._metered)
        self.coded: Coded | None = None
        if options.codec:
            common = strategy.common != "none"
            start, shapes = self._seen(context.vector.read(index)), self.layout.parameter_shapes
            exact = len(start) - self.layout.parameters  # what is averaged only, and statistics
            self.coded = Coded(
                self._metered, options.codec, start, exact=exact, shapes=shapes, referenced=common, reuse=True
            )
        self.comm: Comm = self.coded or self._metered
        self.trigger = strategy.when.init(self.layout, context.comm.size)
        # Added to the steps that the trigger sees, so that its rounds begin at index n / K, and not at n.
        period = strategy.when.period
        self._ahead = period - index * period // options.fragments if index else 0
        # Steps from the start of a round to that of the next, at least: a vote waits until the round has landed.
        self._apart = max(1, options.delay) if strategy.when.voting else 1
        self.phase = 1
        self.strategy = strategy.at(self.phase)
        self.state = self.strategy.init(x, context.flat.fragments[index], self.comm)
        self.rounds = 0
        self.window = Window(x.device)
        self.norm = self._norm(x)
        self.pending: PendingRound | None = None
        self.last_seconds = 0.0, 0.0
        self._copies: dict[str, Tensor] = {}
        fault_points.reach(fault_points.STARTED, target=strategy.target, fragment=index, x=x)

    def wants_round(self, step: int, lr: float | None) -> bool:
        """Ask the trigger, once a step; each fragment's steps are shifted by its share of the period."""
        signal = self.context.signal(self.index, self.layout, step + self._ahead, lr, self.window)
        return self.context.strategy.when.due(self.trigger, signal)

    def open(self, now: StepContext) -> Tensor:
        """Return the vector a round starts from: the live one, or a copy where a fault may change it."""
        vector = self.context.vector
        if now.finished or not fault_points.watched():
            return vector.open(self.index)
        x = vector.read(self.index)
        target, own = self.strategy.target, x[: self.layout.parameters]
        fault_points.reach(fault_points.ROUND_OPENED, target=target, fragment=self.index, step=now.step, x=own)
        if self.context.options.delay:  # this worker goes on from what it has sent
            vector.close(x, self.index)
        return x

    def call_roll(self, now: StepContext) -> RollCall:
        """Call the roll before a round that may not be due, or not be of this fragment.

        At the end it reports the weights, whatever the rounds change.
        """
        context = self.context
        self.follow_up.settle(self.state)
        x = context.flat.open(self.index) if now.finished else context.vector.open(self.index)
        return self._call_roll(x, now, self.window)

    def _call_roll(self, x: Tensor, now: StepContext, window: Window) -> RollCall:
        reports = self.strategy.report(x, self.state, self.layout)
        number, loss, weight = self.rounds + 1, window.mean_loss(), window.weight
        if now.finished:
            number, loss, weight, reports = 0, math.inf, 0.0, tuple(0.0 for _ in reports)
        loss, grown = reported_loss(loss, x, self.layout.parameters, self.norm)
        status = RankStatus(
            round=number,
            requested=now.requested,
            step=now.step,
            loss=loss,
            grown=grown,
            weight=weight,
            seconds=(window.seconds, *self.last_seconds),
            fragment=self.index,
            reports=reports,
        )
        context = self.context
        fault_points.reach(fault_points.ROLL_CALL)
        called = call_roll(status, context.roll_comm or self._metered, context.island, context.options.fragments)
        fault_points.reach(fault_points.ROLL_CALLED)
        check_finite(called.roll, now, self.strategy)
        return called

    def start(self, x: Tensor, now: StepContext, called: RollCall | None = None) -> None:
        """Start a round: in the background if there is a delay, and this worker has not finished.

        Args:
            x: from `open`.
            now: where this worker is.
            called: the roll, if it has been called.
        """
        clock, window = self.context.comm.clock, self.window
        began, delay = clock(), 0 if now.finished else self.context.options.delay
        self.follow_up.settle(self.state)
        if self.context.probe:
            self.context.probe.follow()
        if delay:
            x, self.window = self._copied(x, "start"), window.fresh()
        task = functools.partial(self._exchange, x, now, window, called)
        pending: Pending[RoundResult] = self._metered.start(task) if delay else Done(task)
        ahead = None
        if delay and self.context.options.eager:
            ahead = self._live.go_ahead(self.strategy, self.state, x, self._copied(x, "ahead"))
        self.pending = PendingRound(now.step + delay, x, pending, clock() - began, ahead)

    def _exchange(self, x: Tensor, now: StepContext, window: Window, called: RollCall | None) -> RoundResult:
        """Do all of the round's collectives, which change nothing."""
        context, probe = self.context, self.context.probe
        self._metered.recycle()
        if self.coded:
            self.coded.recycle()
            self.coded.discard()
        called = called or self._call_roll(x, now, window)
        roll, began, probed = called.roll, context.comm.clock(), probe.seconds if probe else 0.0
        signal = context.signal(self.index, self.layout, roll.step, now.lr, window)
        if now.rates:
            rates = functools.partial(of_elements, now.rates, self.layout, self._seen(x))
            signal = dataclasses.replace(signal, rates=rates)
        with self._metered.counting() as traffic:
            averaged = self.layout.averaged
            distrusted = [worker.rank for worker in self.strategy.distrusted(self.state)]
            weight = 0.0 if context.comm.rank in distrusted else roll.weight(context.comm.rank)
            if averaged:
                x = with_means(x, self.layout, weight, self._metered)
            rest = x[self.layout.parameters :].clone()  # what is averaged only, then the buffers
            message = self.strategy.exchange(self._seen(x), self.state, signal, roll, self.comm)
            if context.buffers == "first" and len(rest) > averaged:
                rest[averaged:] = self._metered.broadcast(rest[averaged:], int(roll.present.int().argmax()))
            inner = context.inner.exchange(self.rounds + 1, self.layout, weight, self._metered)
        fault_points.reach(fault_points.EXCHANGED)
        decision = context.comm.decide()
        fault_points.reach(fault_points.DECIDED)
        return RoundResult(
            roll=roll,
            message=message,
            buffers=rest,
            traffic=called.traffic + traffic,
            probe_seconds=probe.seconds - probed if probe else 0.0,
            wait_seconds=called.seconds,
            send_seconds=context.comm.clock() - began,
            decision=decision,
            inner=inner,
        )

    def settle(self) -> RoundResult | None:
        """Wait for the round under way, which lands later (None if there is none), and for a follow-up."""
        self.follow_up.settle(self.state)
        return self.pending.pending.result() if self.pending else None

    def land(self) -> Round | None:
        """Wait for the round under way, and let it change the weights and the state; None if there is none."""
        pending, began = self.pending, self.context.comm.clock()
        if pending is None:
            return None
        self.pending = None
        try:
            result = pending.pending.result()
        except CommError:
            self._live.take_back(pending)
            raise
        strategy = self.strategy
        distrusted, followed = self._apply(pending, result), self.follow_up.reported()
        if self.strategy.follows_up:
            self.follow_up.start(functools.partial(strategy.follow_up, self.state, self.layout, self.comm))
        self.rounds += 1
        if not self.context.options.delay:
            self.window = self.window.fresh()
        self.last_seconds = result.wait_seconds, result.send_seconds
        left_out = {worker.rank for worker in distrusted}
        roll, comm = result.roll, self.context.comm
        compute, wait, send = (tuple(column) for column in roll.seconds.T.tolist())
        return Round(
            step=roll.step,
            strategy=type(strategy).__name__,
            fragment=self.index,
            participants=len({*roll.present.nonzero().view(-1).tolist()} - left_out),
            losses=tuple(roll.losses.tolist()),
            bytes_sent=result.traffic.sent + followed.sent,
            bytes_received=result.traffic.received + followed.received,
            calls=tuple(result.traffic.calls),
            followed=tuple(followed.calls),
            seconds=pending.seconds + comm.clock() - began,
            probe_seconds=result.probe_seconds,
            distrusted=distrusted,
            epoch=comm.epoch,
            members=comm.names,
            decision=result.decision,
            weights=tuple(roll.weights.tolist()),
            compute_seconds=compute,
            wait_seconds=wait,
            send_seconds=send,
        )

    def _apply(self, pending: PendingRound, result: RoundResult) -> tuple[Distrust, ...]:
        """Change the weights and the state by a round's result; return the workers that it left out."""
        fault_points.reach(fault_points.LANDING)
        vector, options = self.context.vector, self.context.options
        n, averaged, strategy = self.layout.parameters, self.layout.averaged, self.strategy
        assigned = not options.delay and options.mix is None
        y = pending.x if assigned else self._copied(pending.x, "end")
        seen, rest = self._seen(y), result.buffers
        agreed = strategy.consensus(seen, result.message)
        if self.context.buffers == "mean":
            rest[averaged:] = agreed[n + averaged :]
        strategy.apply(seen, self.state, result.message, self.layout)
        self.context.inner.apply(result.inner)
        common = agreed if strategy.common == "consensus" else seen
        if self.coded:
            self.coded.commit(common)
        distrusted = strategy.distrusted(self.state)
        self._enter_phase(result.roll.step + self._apart, common)
        y[n:] = rest
        if assigned:
            vector.close(y, self.index)
        else:
            # One that was left out takes the others' weights, and keeps nothing of its own.
            rank = self.context.comm.rank
            left_out = bool(result.roll.losses[rank].isnan()) or rank in [worker.rank for worker in distrusted]
            self._live.merge(pending.left, y, left_out)
        # Reading the weights again costs a pass over memory; it differs from y only where writing has rounded.
        self.norm = self._norm(y if assigned and self.context.flat.exact else vector.open(self.index))
        return distrusted

    def _enter_phase(self, step: int, common: Tensor) -> None:
        """Ask which strategy runs the next round; a new one starts from the vector that is common to all ranks."""
        self.phase, before = step, self.strategy
        self.strategy = self.context.strategy.at(step)
        if self.strategy is not before:
            self.state = self.strategy.init(common, self.layout, self.comm)

    def _norm(self, x: Tensor) -> float:
        """Return the norm that the next round's vector is compared with; a gradient may be of any finite size."""
        return float(x[: self.layout.parameters].norm()) if self.strategy.target == "weights" else math.inf

    def _seen(self, x: Tensor) -> Tensor:
        """Return the part of x that the strategy sees: of gradients, those to which its step is applied."""
        return x[: self.layout.parameters] if self.context.strategy.target == "gradients" else x

    def _copied(self, x: Tensor, name: str) -> Tensor:
        """Return a copy of x, in memory that the next copy of this name reuses."""
        if name not in self._copies:
            self._copies[name] = torch.empty_like(x)
        return self._copies[name].copy_(x)
