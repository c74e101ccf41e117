"""What can go wrong, as one tree.

::

    SwarmstepError
    ├── UsageError             a call or an option is wrong: fix the call         (exit 2)
    ├── DataError              data are missing, foreign or damaged               (exit 3)
    ├── CheckpointError        a checkpoint or run folder cannot be used          (exit 4)
    ├── CommError              the group of workers cannot go on                  (exit 5)
    │   ├── PeerLost           a peer died or fell silent
    │   ├── CollectiveMismatch the ranks called different collectives
    │   ├── Disagreement       the ranks were configured differently
    │   └── RunOver            a worker wanted to join, and all steps are taken
    ├── NotFinite              NaN or infinity in some worker's weights           (exit 6)
    ├── ResultNotFinite    a run is done, and a loss of its result is NaN or infinite (exit 7)
    └── Interrupted            the user asked to stop; a checkpoint was written   (exit 130)

Every message says what happened, what was expected, on which rank and step, and what to do.
"""

from __future__ import annotations


class SwarmstepError(Exception):
    """Root of all errors that swarmstep raises on purpose."""

    exit_code = 1


class UsageError(SwarmstepError):
    """A call or an option is wrong; the message lists what would be valid."""

    exit_code = 2


class DataError(SwarmstepError):
    """Data files are missing, foreign or damaged; the message names file and folder."""

    exit_code = 3


class CheckpointError(SwarmstepError):
    """A checkpoint or a run folder cannot be used; the message names the field that differs."""

    exit_code = 4


class CommError(SwarmstepError):
    """The group of workers cannot go on together."""

    exit_code = 5


class PeerLost(CommError):
    """A peer died or gave no sign of life in time."""


class CollectiveMismatch(CommError):
    """The ranks called different collectives, or with different shapes."""


class Disagreement(CommError):
    """The ranks were configured differently; the message names rank and field, and `rank` is who differs."""

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


class RunOver(CommError):
    """A worker wanted to join a run whose steps are all taken."""


class NotFinite(SwarmstepError):
    """Some worker's weights hold NaN or infinity and the strategy cannot contain it."""

    exit_code = 6


class ResultNotFinite(SwarmstepError):
    """A run is done and its files are written, but a loss of its result is NaN or infinite."""

    exit_code = 7


class Interrupted(SwarmstepError):
    """The user asked to stop; all ranks stopped at the same step."""

    exit_code = 130
