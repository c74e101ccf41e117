"""What a command says beside its output."""

from __future__ import annotations

import contextlib
import sys


def say(message: str) -> None:
    """Print one line to standard error; a closed terminal is no error."""
    with contextlib.suppress(OSError):
        print(f"swarmstep: {message}", file=sys.stderr, flush=True)
