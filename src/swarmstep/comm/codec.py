"""What a codec is: how float32 vectors become fewer bytes, and how a group takes a mean of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from torch import Tensor

from swarmstep.arguments import Checked
from swarmstep.comm.base import Comm
from swarmstep.comm.scratch import Scratch
from swarmstep.errors import UsageError

Shapes = Sequence[Sequence[int]]  # of the tensors in a vector, in their order


@dataclass(frozen=True)
class Codec(Checked, ABC):
    """How float32 vectors travel: parameters only, each subclass final and frozen."""

    # Whether vectors must be coded as differences from a vector that all ranks know, which are small.
    needs_reference: ClassVar[bool]

    @abstractmethod
    def coding(
        self, reference: Tensor, shapes: Shapes, size: int, scratch: Scratch, *, referenced: bool
    ) -> Coding:
        """Return what codes the vectors of a group.

        Args:
            reference: the first one, float32 [n], equal on all ranks; empty if there is none.
            shapes: of the tensors in it.
            size: of the group.
            scratch: for intermediate results.
            referenced: whether there is a reference.
        """


def take_over(into: Tensor, reference: Tensor) -> None:
    """Make `into` [P] the next reference vector, as `Coding.commit` does; UsageError if it has another length."""
    if reference.numel() != len(into):
        raise UsageError(f"commit: expected {len(into)} elements, found {list(reference.shape)}")
    into.copy_(reference.reshape(-1))


class Coding(ABC):
    """How the vectors of one group are coded, and what that remembers from round to round.

    Attributes:
        staged_length: of the vector in the last mean, for `given`; 0: there is none.
    """

    staged_length = 0

    @property
    @abstractmethod
    def state(self) -> NamedTuple:
        """What a checkpoint keeps: tensors that only `commit` changes, in place."""

    @abstractmethod
    def commit(self, reference: Tensor) -> None:
        """Make what the last mean has staged current, and `reference` the new reference."""

    @abstractmethod
    def discard(self) -> None:
        """Drop what is staged."""

    @abstractmethod
    def staged(self) -> dict[str, Tensor]:
        """Return copies of what `commit` would make current, under the names of fields of the state."""

    @abstractmethod
    def stage(self, staged: Mapping[str, Tensor]) -> None:
        """Go on in the middle of a round, from what `staged` returned."""

    @abstractmethod
    def mean(self, comm: Comm, x: Tensor, weight: float, out: Tensor) -> float:
        """Fill `out` with the mean of all ranks' x [n], coded, and return the sum of the weights. Collective.

        It changes no state: it stages what `commit` makes current.

        Raises:
            CommError: every rank had weight 0.
        """

    @abstractmethod
    def given(self, out: Tensor) -> None:
        """Fill `out` with what the others received for this rank's x in the last mean."""

    @abstractmethod
    def size(self, n: int) -> int:
        """Return the bytes of one coded vector of n elements, outside of a mean."""

    @abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """Return each row of float32 [k, n] as bytes [k, size(n)], in a scratch buffer."""

    @abstractmethod
    def decode(self, row: Tensor, out: Tensor) -> None:
        """Fill `out` [n] from the bytes of a vector."""
