"""The one stateful object: counts steps, runs the rounds, saves and loads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from swarmstep import records
from swarmstep.agreement import agree, agree_on_loss, start_alike
from swarmstep.comm.base import Comm
from swarmstep.comm.metered import Metered, Traffic
from swarmstep.errors import CheckpointError, CommError, UsageError
from swarmstep.flat import Flat
from swarmstep.flight import Now, Setting
from swarmstep.lane import Lane, Loading
from swarmstep.options import Options
from swarmstep.probe import Probe
from swarmstep.signal import Round
from swarmstep.strategies.base import Strategy, check_choice


class Synchronizer:
    """Synchronizes a model with those of the other workers, seldom.

    Call `step(loss)` after each `optimizer.step()` and before `zero_grad()`, and `finish()` at the end. Made
    at the same point on all ranks: they compare their configuration and take rank 0's weights and buffers.
    Load a checkpoint's model after this, then call `load_state_dict`.

    Args:
        model: any module; its parameters are changed in place.
        strategy: how a round changes the weights, and when.
        comm: this worker's view of the group.
        options: see `Options`.

    Raises:
        Disagreement: the ranks differ in strategy, hyper-parameters, shapes or the probe's loss.
        UsageError: the model has nothing to train, or the options do not go with it, or with the strategy.
    """

    def __init__(self, model: nn.Module, strategy: Strategy, comm: Comm, options: Options | None = None) -> None:
        self.strategy = strategy
        self.options = options = options or Options()
        self._comm = Metered(comm)
        self._check()
        self._flat = Flat(model, views=options.views, fragments=options.fragments, device=options.offload)
        agree(self._describe() | self._flat.describe(), self._comm)
        start_alike(model, self._comm)
        self._probe = Probe(model, options.probe, comm.clock, guarded=not options.delay) if options.probe else None
        x = self._flat.in_plain_order(self._flat.read())
        if self._probe:
            agree_on_loss(self._probe(x, 0), self._comm)
            if options.probe_cost is None:
                self._probe(x, 0)  # timed: the first call is slower
        self._setting = self._settle_setting()
        self._lanes = [Lane(self._setting, i, self._flat.read(i)) for i in range(options.fragments)]
        self._step = 0
        self._finished = False
        self._loaded = False  # the result, into the model

    def _check(self) -> None:
        """Raise UsageError where the options do not go with the strategy."""
        strategy, options = self.strategy, self.options
        name = type(strategy).__name__
        check_choice(f"buffers with {name}", options.buffers or strategy.buffers[0], strategy.buffers)
        if strategy.needs_probe and options.probe is None:
            raise UsageError(f"{name} needs a probe: give Options(probe=...)")
        if options.fragments > 1 and strategy.needs_probe:
            raise UsageError(f"fragments: {name} measures whole models on a probe; use fragments=1")
        if options.fragments > max(1, strategy.when.period):
            raise UsageError(
                f"fragments: expected when=Every(n) with n at least {options.fragments}, the number of fragments, "
                f"found {strategy.when}"
            )

    def _settle_setting(self) -> Setting:
        """Return what the lanes share; rounds that travel in the background have groups of their own."""
        options, island = self.options, self.options.island
        away = options.delay > 0
        comm = Metered(self._comm.split(0).bare) if away else self._comm
        votes = self.strategy.when.voting
        return Setting(
            strategy=self.strategy,
            options=options,
            buffers=options.buffers or self.strategy.buffers[0],
            flat=self._flat,
            comm=comm,
            heard=self._comm if votes else None,
            island=island.split(0) if island and away and not votes else island,
            probe=self._probe,
        )

    def _describe(self) -> dict[str, str]:
        """Return what must be equal on all ranks and between a checkpoint and the run that loads it."""
        strategy, options = self.strategy, self.options
        fields = {f.name: getattr(strategy, f.name) for f in dataclasses.fields(strategy)}
        return {
            "strategy": type(strategy).__name__,
            **{name: repr(value) for name, value in fields.items()},
            "world size": str(self._comm.size),
            "seed": str(options.seed),
            "buffers": options.buffers or strategy.buffers[0],
            "probe": "given" if options.probe else "none",
            "delay": str(options.delay),
            "mix": str(options.mix),
            "fragments": str(options.fragments),
            "codec": repr(options.codec),
        }

    @property
    def bytes_sent(self) -> int:
        """Payload this worker has sent, the start and the end included."""
        return sum(traffic.sent for traffic in self._traffic())

    @property
    def bytes_received(self) -> int:
        """Payload this worker has received, the start and the end included."""
        return sum(traffic.received for traffic in self._traffic())

    @property
    def under_way(self) -> bool:
        """Whether a round travels; the same on all ranks."""
        return any(lane.flight for lane in self._lanes)

    def _traffic(self) -> list[Traffic]:
        rounds = self._setting.comm.traffic
        return [self._comm.traffic] if rounds is self._comm.traffic else [self._comm.traffic, rounds]

    def step(self, loss: Tensor | float, lr: float | None = None) -> Round | None:
        """Count a local step; land the round that is due to land, and start the one that is due to start.

        Args:
            loss: this step's training loss, a scalar; its graph is not kept.
            lr: the inner optimizer's learning rate, for methods that scale with it.

        Returns:
            A report of the round that landed, or None. Without a delay a round lands in the step it starts in.

        Raises:
            NotFinite: a worker's weights are not finite and the strategy cannot contain it (on all ranks).
            CommError: the group cannot go on; the weights are those before the round.
            UsageError: `finish` was called before.
        """
        if self._finished:
            raise UsageError("Synchronizer.step called after finish; make a new Synchronizer to train on")
        if isinstance(loss, Tensor) and loss.numel() != 1:
            raise UsageError(f"Synchronizer.step: expected a scalar loss, found shape {list(loss.shape)}")
        self._step += 1
        landed: list[Round | None] = []
        try:
            for lane in self._lanes:
                lane.note(loss)
                landed += self._take_step(lane, lr)
        except CommError as error:
            raise type(error)(f"step {self._step}: {error}") from error
        return next((report for report in landed if report), None)

    def _take_step(self, lane: Lane, lr: float | None) -> list[Round | None]:
        """Do what is due in one lane at this step; return what landed."""
        landed: list[Round | None] = []
        if lane.flight and self._step >= lane.flight.lands:
            landed.append(lane.land())
        wish = lane.wishes(self._step, lr)
        now = Now(self._step, lr, wish)
        called = None
        if self.strategy.when.voting:
            if lane.flight:  # nobody is heard while a round travels
                return landed
            x = lane.open(now)
            called = lane.call(x, now)
            if not called.due:
                return landed
        elif not wish:
            return landed
        else:
            landed.append(lane.land())
            x = lane.open(now)
        lane.start(x, now, called)
        if not self.options.delay:
            landed.append(lane.land())
        return landed

    def finish(self) -> list[Round]:
        """Land what is under way, answer the others' rounds until all have finished, then load the result.

        Every rank calls it once, after its last step; the ranks may have taken different numbers of steps.

        Returns:
            Reports of the rounds that landed meanwhile.

        Raises:
            NotFinite: as in `step`.
            CommError: as in `step`.
        """
        if self._loaded:
            return []
        self._finished = True
        gone = Now(self._step, None, False, finished=True)
        landed: list[Round | None] = []
        try:
            for lane in sorted(self._lanes, key=lambda lane: lane.flight.lands if lane.flight else 0):
                landed.append(lane.land())
            while (called := self._lanes[0].call(self._lanes[0].open(gone), gone)).roll.steps.any():
                if called.due:
                    lane = self._lanes[called.fragment]
                    lane.start(lane.open(gone), gone, called)
                    landed.append(lane.land())
        except CommError as error:
            raise type(error)(f"step {self._step}: {error}") from error
        self._flat.write(self._result())
        self._flat.release()
        self._loaded = True
        return [report for report in landed if report]

    def result(self) -> Tensor:
        """Return the model as `finish` would leave it now, as a flat vector: all parameters, then all buffers.

        Collective; changes nothing. What is under way is not in it.
        """
        return self._flat.in_plain_order(self._result())

    def _result(self) -> Tensor:
        parts = [self.strategy.result(self._flat.read(lane.index), lane.state, self._comm) for lane in self._lanes]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """Return numbers, strings and tensors: what this rank needs, beside model and optimizer, to go on.

        Waits for the round under way, which lands at its step all the same.
        """
        return {
            "configuration": self._describe(),
            "rank": self._comm.rank,
            "step": self._step,
            "weights": records.fingerprint(self._flat.read()),
            "fragments": [lane.state_dict() for lane in self._lanes],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; load the model's own state dict first.

        Raises:
            CheckpointError: names the field that differs; nothing was loaded then.
        """
        try:
            step, checked = self._checked(saved)
        except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
            raise CheckpointError(f"the checkpoint does not fit this run ({error}); start anew") from error
        self._step = step
        for lane, part in zip(self._lanes, checked, strict=True):
            lane.load(part)

    def _checked(self, saved: Mapping[str, Any]) -> tuple[int, list[Loading]]:
        """Return the step, and what there is to load into each lane; changes nothing."""
        records.same("rank", self._comm.rank, records.field(saved, "rank"))
        mine, theirs = self._describe(), records.field(saved, "configuration")
        for field in {**mine, **theirs}:
            records.same(field, mine.get(field, "absent"), theirs.get(field, "absent"))
        if records.field(saved, "weights") != records.fingerprint(self._flat.read()):
            raise CheckpointError(
                "weights: the model does not hold the weights of the checkpoint; load the model's state dict "
                "after making the Synchronizer and before Synchronizer.load_state_dict"
            )
        step, parts = int(records.field(saved, "step")), records.field(saved, "fragments")
        records.same("number of fragments", len(self._lanes), len(parts))
        return step, [lane.checked(part) for lane, part in zip(self._lanes, parts, strict=True)]
