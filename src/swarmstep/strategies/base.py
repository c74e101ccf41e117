"""The contract of a strategy: how a round changes the flat parameter vector."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, Literal, NamedTuple

from torch import Tensor
from typing_extensions import TypeVar

from swarmstep.arguments import Checked
from swarmstep.cards import Card
from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import carry
from swarmstep.signal import Distrust, Layout, Roll, Signal
from swarmstep.when import Every, When

State = TypeVar("State", bound=NamedTuple, default=Any)
Message = TypeVar("Message", bound=NamedTuple, default=Any)
Target = Literal["weights", "gradients"]


@dataclasses.dataclass(frozen=True)
class Strategy(Checked, ABC, Generic[State, Message]):
    """A method of synchronization: a frozen dataclass of hyper-parameters and of nothing else.

    What a method remembers between rounds is its `State`, a NamedTuple of tensors, each annotated `Shared`, `Own`
    or `PerWorker` (`swarmstep.ownership`). `apply` changes it in place, and nothing else does; `carry` moves it
    to another group. What a round brings is its `Message`, another NamedTuple of tensors. Both are named in the
    class: ``class DiLoCo(Strategy[DiLoCoState, DiLoCoMessage])``, and `exchange` names the message as its return
    type, since a checkpoint may hold one.

    The vector x [P] is flat, float32 (float64 where the model has such parameters): parameters first, then
    floating-point buffers. A strategy treats all of x alike; the Synchronizer corrects the buffers afterwards,
    by policy. Random numbers are functions of (seed, step, rank).
    """

    card: ClassVar[Card]
    # What a round changes: the weights after the optimizer's step (`Synchronizer.step`), or the gradient before it
    # (`Synchronizer.reduce`). x is then the flat gradient of the parameters, but for `init` and `result`.
    target: ClassVar[Target] = "weights"
    # Whether the method copes with a worker whose weights are not finite; otherwise all ranks raise.
    contains_not_finite: ClassVar[bool] = False

    when: When = dataclasses.field(default=Every(16), kw_only=True)

    @property
    def buffers(self) -> tuple[str, ...]:
        """Policies allowed for floating-point buffers such as BatchNorm statistics; the first is the default."""
        return ("mean", "local", "first")

    @property
    def one_result(self) -> bool:
        """Whether `result` is the same on all ranks."""
        return True

    @property
    def common(self) -> str:
        """Which vector is equal on all ranks after a round, so that codecs may send differences from it.

        "weights", those that all workers leave with; "consensus"; or "none".
        """
        return "none"

    @property
    def needs_probe(self) -> bool:
        """Whether the rounds measure the loss on the shared probe batch."""
        return False

    @property
    def needs_loss(self) -> bool:
        """Whether the rounds compare the workers' training losses."""
        return False

    @property
    def needs_sgd(self) -> bool:
        """Whether the inner optimizer must be linear in the gradient: SGD or momentum SGD, without clipping."""
        return False

    @property
    def follows_up(self) -> bool:
        """Whether a round goes on in the background after it has landed: `follow_up`."""
        return False

    def at(self, step: int) -> Strategy:
        """Return the strategy of the round at this step: this one, unless it combines several.

        The runtime asks at step 1 and, after each round, for the step that follows it. Where the answer changes,
        the next strategy starts with `init` at the vector that the round made common to all ranks.
        """
        return self

    @abstractmethod
    def init(self, x: Tensor, layout: Layout, comm: Comm) -> State:
        """Return the state at the common start x; keeps no reference to x."""

    def carry(self, state: State, fresh: State, sources: Sequence[int | None], rank: int) -> State:
        """Return the state this worker has in a changed group, in new tensors; local, the same rule on all ranks.

        The default, `swarmstep.ownership.carry`, goes by the annotations. Override it where a value is a rank, or
        where a newcomer should know more.

        Args:
            state: this worker's, or a survivor's if this worker is a newcomer.
            fresh: what `init` returns in the new group, at this worker's x.
            sources: for each rank of the new group its rank in the old one, None for a newcomer.
            rank: this worker's, in the new group.

        Raises:
            UsageError: as `swarmstep.ownership.carry`.
        """
        return carry(state, fresh, sources, rank)

    def report(self, x: Tensor, state: State, layout: Layout) -> tuple[float, ...]:
        """Return what this worker adds to the roll call: always the same number of values, cheap to compute.

        Each is a sum over the elements of x, so that the values of a model's shards add up.
        """
        return ()

    def distrusted(self, state: State) -> tuple[Distrust, ...]:
        """Return the workers that the last round left out although they took part, in rank order."""
        return ()

    @abstractmethod
    def exchange(self, x: Tensor, state: State, signal: Signal, roll: Roll, comm: Comm) -> Message:
        """Run all of the round's collectives and return the message for `apply`; changes nothing."""

    def alone(self, x: Tensor, state: State, workers: int) -> Message | None:
        """Return the message of a round to which this worker brings its step, the others none; changes nothing.

        With `Options(eager=True)` a worker goes on from what `apply` makes of it while the round travels. None,
        the default: the method has no such step, and eager rounds are refused.

        Args:
            x: this worker's, at the start of the round.
            state: before the round.
            workers: in the group; this one's part of the mean is 1/W.
        """
        return None

    @abstractmethod
    def apply(self, x: Tensor, state: State, message: Message, layout: Layout) -> None:
        """Change x and the tensors of `state` in place; local."""

    def follow_up(self, state: State, layout: Layout, comm: Comm) -> State:
        """Run what a round sends beside the next step, after `apply`, and return the state that it leaves.

        Only where `follows_up`. Changes nothing. The next round or a checkpoint waits for it and takes the state.
        """
        return state

    @abstractmethod
    def consensus(self, x: Tensor, message: Message) -> Tensor:
        """Return the vector [P] that this worker's round agreed on (a mean, a leader): where buffers come from."""

    def result(self, x: Tensor, state: State, comm: Comm) -> Tensor:
        """Return the model at the end, [P]; by default the mean of the workers. Collective."""
        return comm.mean(x)[0]


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless low <= value <= high."""
    if not low <= value <= high:
        raise UsageError(f"{name}: expected {low:g} to {high:g}, found {value!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
