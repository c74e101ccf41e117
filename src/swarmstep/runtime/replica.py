"""What stays of a worker when the group around it changes: model, strategy, options, probe."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from swarmstep.comm.metered import Metered
from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.runtime.fragment import Fragment
from swarmstep.runtime.gradients import Gradients
from swarmstep.runtime.module_tensors import check_wrappers, module_tensors, sharded
from swarmstep.runtime.optimizer_state import LOCAL, OptimizerStates, Rule, described
from swarmstep.runtime.options import Options, Stateful
from swarmstep.runtime.probe import Probe
from swarmstep.runtime.round_context import RoundContext
from swarmstep.runtime.startup_checks import agree, agree_on_loss, start_alike
from swarmstep.runtime.state_transfer import is_finite, take_over, tensors_of
from swarmstep.strategies.base import Strategy, check_choice
from swarmstep.strategies.warmup import Warmup


class Replica:
    """A model and how it is synchronized, whoever the others are.

    Args:
        model: any module; its parameters are changed in place.
        strategy: how a round changes the weights, and when.
        options: see `Options`.

    Raises:
        UsageError: the model has nothing to train, or the options do not go with it, or with the strategy.
    """

    def __init__(self, model: nn.Module, strategy: Strategy, options: Options) -> None:
        self.model, self.strategy, self.options = model, strategy, options
        self._check()
        check_wrappers(model)
        if options.island is None and (name := sharded(model)):
            raise UsageError(
                f"parameter {name!r} is a DTensor, of which each rank holds a shard; give the group of the ranks "
                "that hold this model as Options(island=...) (docs/large-models.md)"
            )
        self.flat = Flat(model, views=options.views, fragments=options.fragments, device=options.offload)
        self._probe: Probe | None = None
        self._stateful: dict[str, Stateful] = {**options.stateful}
        self._kept: dict[str, Any] = {}  # states by name that were taken over, and which nothing has yet

    def _check(self) -> None:
        """Raise UsageError where the options do not go with the strategy."""
        strategy, options = self.strategy, self.options
        name = type(strategy).__name__
        check_choice(f"buffers with {name}", options.buffers or strategy.buffers[0], strategy.buffers)
        given = [field for field in ("delay", "mix", "island") if getattr(options, field) not in (0, None)]
        given += ["fragments"] if options.fragments > 1 else []
        if strategy.target == "gradients" and given:
            raise UsageError(
                f"{given[0]}: {name} synchronizes gradients, which the optimizer waits for in one piece; expected "
                "none of delay, mix, fragments and island"
            )
        check_states(options.optimizer_state, strategy)
        if options.eager and type(strategy).alone is Strategy.alone:
            raise UsageError(f"eager: {name} has no step that a worker could take before the others'; take DiLoCo")
        if strategy.needs_probe and options.probe is None:
            raise UsageError(f"{name} needs a probe: give Options(probe=...)")
        if options.fragments > 1 and strategy.needs_probe:
            raise UsageError(f"fragments: {name} measures whole models on a probe; use fragments=1")
        if options.fragments > 1 and strategy.follows_up:
            raise UsageError(
                f"fragments: {name} still sends after a round has landed, when that of another part may begin; "
                "use fragments=1 (GASLoC: or overlapped=none)"
            )
        if options.fragments > max(1, strategy.when.period):
            raise UsageError(
                f"fragments: expected when=Every(n) with n at least {options.fragments}, the number of fragments, "
                f"found {strategy.when}"
            )

    def describe(self, size: int) -> dict[str, str]:
        """Return what is equal on all ranks of a group, and in a checkpoint and the run that loads it."""
        strategy, options = self.strategy, self.options
        fields = {f.name: getattr(strategy, f.name) for f in dataclasses.fields(strategy)}
        return {
            "strategy": type(strategy).__name__,
            **{name: repr(value) for name, value in fields.items()},
            "world size": str(size),
            "seed": str(options.seed),
            "buffers": options.buffers or strategy.buffers[0],
            "probe": "given" if options.probe else "none",
            "delay": str(options.delay),
            "mix": str(options.mix),
            "fragments": str(options.fragments),
            "codec": repr(options.codec),
            # Checkpoints of before there was a choice do not say.
            **({"eager": "True"} if options.eager else {}),
            **(
                {} if options.optimizer_state == LOCAL else {"optimizer state": described(options.optimizer_state)}
            ),
        }

    def agree(self, comm: Metered) -> None:
        """Raise Disagreement unless all ranks of a group describe themselves alike."""
        agree(self.describe(comm.size) | self.flat.describe(), comm)

    def begin(self, comm: Metered) -> None:
        """Start from rank 0's weights and buffers, like all others."""
        start_alike(self.model, comm)
        probe = self._made_probe(comm)
        if probe:
            agree_on_loss(probe.last_loss, comm)

    @property
    def finite(self) -> bool:
        """Whether everything that a newcomer would take from this worker is finite."""
        return is_finite([*module_tensors(self.model).values(), self._states()])

    def possessions(self) -> dict[str, Any]:
        """Return what a newcomer takes of this worker, beside the swarm's state."""
        return {"model": tensors_of(self.model), "stateful": self._states()}

    def _states(self) -> dict[str, Any]:
        return {**self._kept, **{name: thing.state_dict() for name, thing in self._stateful.items()}}

    def meet(self, comm: Metered, theirs: dict[str, Any] | None) -> None:
        """Let newcomers start at the mean of the others, as new particles, with what else one of them has.

        Args:
            comm: the group.
            theirs: what a newcomer takes; None for those that go on.
        """
        if theirs:
            take_over(self.model, theirs["model"])
        x = self.flat.read()
        mean, _ = comm.mean(x, 0.0 if theirs or not x.isfinite().all() else 1.0)
        if theirs:
            self.flat.write(mean)
            self._made_probe(comm)

    def keep(self, theirs: dict[str, Any]) -> None:
        """Take over what was not needed before the group had begun: the optimizer and the like."""
        self._kept = {**theirs["stateful"]}
        for name, thing in self._stateful.items():
            thing.load_state_dict(self._kept.pop(name))

    def attach(self, name: str, thing: Stateful) -> None:
        """Have newcomers take over this, too; it takes what was kept for it."""
        self._stateful[name] = thing
        if name in self._kept:
            thing.load_state_dict(self._kept.pop(name))

    def _made_probe(self, comm: Metered) -> Probe | None:
        options = self.options
        if options.probe and not self._probe:
            self._probe = Probe(self.model, options.probe, comm.clock, guarded=not options.delay)
            x = self.flat.in_plain_order(self.flat.read())
            self._probe(x, 0)
            if options.probe_cost is None:
                self._probe(x, 0)  # timed: the first call is slower
        return self._probe

    def fragments(self, whole: Metered) -> list[Fragment]:
        """Return new fragments in a group; rounds in the background get a group of their own. Collective."""
        options, island = self.options, self.options.island
        background, votes = options.delay > 0 or self.strategy.follows_up, self.strategy.when.voting
        shards = island.split(0) if island and background else island
        context = RoundContext(
            strategy=self.strategy,
            options=options,
            buffers=options.buffers or self.strategy.buffers[0],
            flat=self.flat,
            vector=self.flat if self.strategy.target == "weights" else Gradients(self.flat),
            comm=Metered(whole.split(0).bare) if background else whole,
            roll_comm=whole if votes else None,
            island=island if votes else shards,
            shards=shards,
            probe=self._probe,
            inner=OptimizerStates(options.optimizer_state, options.optimizers, self.model, self.flat.dtype),
        )
        return [Fragment(context, i, self.flat.read(i)) for i in range(options.fragments)]


def check_states(rule: Rule, strategy: Strategy) -> None:
    """Raise UsageError where a rule averages optimizers' states, and the strategy not the weights with them."""
    if rule != LOCAL and not averages(strategy):
        name = type(strategy).__name__
        raise UsageError(
            f"optimizer_state: {name} does not take the plain mean of the workers' weights, so that a mean of "
            "their optimizers' states would belong to other weights; take 'local'"
        )


def averages(strategy: Strategy) -> bool:
    """Return whether rounds follow the mean of all workers' weights."""
    if isinstance(strategy, Warmup):
        return averages(strategy.first) and averages(strategy.then)
    return strategy.target == "weights" and strategy.common != "none" and strategy.card.weighted
