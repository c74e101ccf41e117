"""What a command says beside its output, and its numbers as JSON has them."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Mapping
from typing import Any, cast


def say(message: str) -> None:
    """Print one line to standard error; a closed terminal is no error."""
    with contextlib.suppress(OSError):
        print(f"swarmstep: {message}", file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """Return `value` with NaN and infinity replaced by None: JSON has no such numbers."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in cast(list[Any], value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def in_bytes(count: float) -> str:
    """Return a number of bytes as people read it."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
