"""The contract of a strategy: how a round changes the flat parameter vector."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor

from swarmstep.comm.base import Comm
from swarmstep.errors import UsageError
from swarmstep.ownership import Own as Own
from swarmstep.ownership import PerWorker as PerWorker
from swarmstep.ownership import Shared as Shared
from swarmstep.signal import Distrust, Layout, Roll, Signal
from swarmstep.when import Every, When

S = TypeVar("S", bound=NamedTuple)


@dataclasses.dataclass(frozen=True)
class Card:
    """What the table of strategies and the command line show of a method.

    `traffic` is what a round costs each worker, sent, as a mean over the W workers, in units of P vector
    elements (the vector holds the parameters and averaged buffers), without the roll call; `memory` what it
    keeps, in units of P.
    """

    title: str
    traffic: str
    memory: str
    paper: str
    bibtex: str


@dataclasses.dataclass(frozen=True)
class Strategy(ABC):
    """A method of synchronization: hyper-parameters only, every concrete one final and frozen.

    State is a NamedTuple of tensors, each annotated `Shared`, `Own` or `PerWorker`, changed in place by
    `apply` and nowhere else, and moved to another group by `carry`; a message is a NamedTuple of tensors, too.
    The vector x [P] is flat, float32 (float64 where the model has such parameters): parameters first, then
    floating-point buffers. A strategy treats all of x alike; the Synchronizer corrects the buffers afterwards,
    by policy. Where a strategy calls on randomness it is a function of (seed, step, rank).
    """

    card: ClassVar[Card]
    # Policies allowed for floating-point buffers such as BatchNorm statistics; the first is the default.
    buffers: ClassVar[tuple[str, ...]] = ("mean", "local", "first")
    # Whether a worker with weights that are not finite is contained; otherwise all ranks raise.
    contains_not_finite: ClassVar[bool] = False
    # Whether `result` is the same on all ranks.
    one_result: ClassVar[bool] = True

    when: When = dataclasses.field(default=Every(16), kw_only=True)

    @property
    def common(self) -> str:
        """Which vector is equal on all ranks after a round, so that codecs may send differences from it.

        "weights", those that all leave with; "consensus"; or "none".
        """
        return "none"

    @property
    def needs_probe(self) -> bool:
        """Whether the rounds measure the loss on the shared probe batch."""
        return False

    @abstractmethod
    def init(self, x: Tensor, layout: Layout, comm: Comm) -> NamedTuple:
        """Return the state at the common start x; keeps no reference to x."""

    def carry(self, state: S, fresh: S, sources: Sequence[int | None], rank: int) -> S:
        """Return the state this worker has in a changed group, in new tensors; local, the same rule on all ranks.

        The default is the function `carry`, which goes by the annotations: override it where a value means a
        rank, or where one that joins shall know more.

        Args:
            state: this worker's, or a survivor's where this worker joins.
            fresh: what `init` returns in the new group, at this worker's x.
            sources: for each rank of the new group its rank in the old one, None for a worker that joins.
            rank: this worker's, in the new group.

        Raises:
            UsageError: as the function `carry`.
        """
        return carry(state, fresh, sources, rank)

    def report(self, x: Tensor, state: NamedTuple) -> tuple[float, ...]:
        """Return what this worker adds to the roll call: always as many numbers, cheap to compute.

        Each is a sum over the elements of x, so that those of the shards of a worker's model add up.
        """
        return ()

    def distrusted(self, state: NamedTuple) -> tuple[Distrust, ...]:
        """Return the workers that the last round left out although they took part, in rank order."""
        return ()

    @abstractmethod
    def exchange(self, x: Tensor, state: NamedTuple, signal: Signal, roll: Roll, comm: Comm) -> NamedTuple:
        """Do all the round's collectives; change nothing. Returns the message for `apply`."""

    @abstractmethod
    def apply(self, x: Tensor, state: NamedTuple, message: NamedTuple) -> None:
        """Change x and the tensors of state in place; local."""

    @abstractmethod
    def consensus(self, x: Tensor, message: NamedTuple) -> Tensor:
        """Return the vector [P] this worker's round agreed on (a mean, a leader): where buffers come from."""

    def result(self, x: Tensor, state: NamedTuple, comm: Comm) -> Tensor:
        """Return the model at the end, [P]; by default the mean of the workers. Collective."""
        return comm.mean(x)[0]


def carry(state: S, fresh: S, sources: Sequence[int | None], rank: int) -> S:
    """Return a state as rank `rank` of a changed group has it, in new tensors: of a strategy, a trigger, a codec.

    What a field's annotation (`swarmstep.signal`) makes of it::

        Shared, Inherited   state's
        Own                 state's for a survivor, fresh's for one that joins
        PerWorker           row i is state's row sources[i], fresh's row i for one that joins
        Place               state's for a survivor whose rank stays, else fresh's
        Derived             fresh's

    But a field whose shape depends on the group's size in another way than a PerWorker's is fresh's, too.

    Args:
        state: this worker's, or a survivor's where this worker joins.
        fresh: what `init` returns in the new group, at this worker's x.
        sources: for each rank of the new group its rank in the old one, None for a worker that joins.
        rank: this worker's, in the new group.

    Raises:
        UsageError: `sources` names no survivor, or one twice; or a field has no such annotation.
    """
    survivors = [source for source in sources if source is not None]
    if not survivors or len(set(survivors)) < len(survivors) or min(survivors) < 0:
        raise UsageError(f"sources: expected ranks of the old group, each once and at least one, found {sources}")
    hints = get_type_hints(type(fresh), include_extras=True)
    old, new = state._asdict(), fresh._asdict()
    return fresh._replace(**{name: _carried(hints[name], old[name], new[name], sources, rank) for name in new})


def _carried(hint: Any, old: Tensor, new: Tensor, sources: Sequence[int | None], rank: int) -> Tensor:
    """Return one field of a state in a changed group, as a new tensor on the device of `new`."""
    kind, source = getattr(hint, "__metadata__", ("none",))[0], sources[rank]
    kept = {
        "shared": True,
        "inherited": True,
        "own": source is not None,
        "per worker": True,
        "place": source == rank,
        "derived": False,
    }
    if kind not in kept:
        raise UsageError(
            f"state: expected each field to be Shared, Own, PerWorker, ..., found one that is {hint}; annotate "
            "it as in swarmstep.signal"
        )
    old = old.to(new.device)
    if kind == "per worker":
        return torch.stack([new[i] if source is None else old[source] for i, source in enumerate(sources)])
    return (old if kept[kind] and old.shape == new.shape else new).clone()


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise UsageError unless low <= value <= high."""
    if not low <= value <= high:
        raise UsageError(f"{name}: expected {low:g} to {high:g}, found {value!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UsageError unless `value` is one of `choices`."""
    if value not in choices:
        raise UsageError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
