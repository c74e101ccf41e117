"""A warning where training has ended and nobody has asked for its result."""

from __future__ import annotations

import sys
import warnings
import weakref


class Unfinished:
    """Warns once its owner is collected, or the program ends, if steps were taken of which nothing is left.

    Args:
        owner: whose end is awaited; it is not kept alive.

    Attributes:
        steps: how many have been taken, where neither a result nor a checkpoint has them; 0: all is well.
    """

    def __init__(self, owner: object) -> None:
        self.steps = 0
        weakref.finalize(owner, self._warn)

    def _warn(self) -> None:
        # A program that an error has ended says that, and no more.
        if self.steps and getattr(sys, "last_value", None) is None:
            warnings.warn(
                f"a Synchronizer ended without finish, after step {self.steps}: the model holds what this worker "
                "has trained, and not the result of all; call finish() after the last step, or train in "
                "`with Synchronizer(...) as sync:`",
                stacklevel=2,
            )
