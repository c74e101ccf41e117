"""Output for programs: with --json, a command writes one JSON document on standard output, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Generator
from typing import Annotated, Any, TextIO

import typer

from swarmstep.console import plain

Json = Annotated[
    bool, typer.Option("--json", help="print one JSON document, and nothing else, on standard output")
]


def print_json(document: Any) -> None:
    """Print what `json.dumps` takes; numbers that are not finite become null."""
    print(json.dumps(plain(document), allow_nan=False))


@contextlib.contextmanager
def reserved_stdout(wanted: bool) -> Generator[None]:
    """While the block runs, what it and the processes it starts print goes to standard error, if `wanted`."""
    if not wanted or sys.stdout is None:
        yield
        return
    sys.stdout.flush()
    out, err = _descriptor(sys.stdout), _descriptor(sys.stderr)
    with contextlib.ExitStack() as stack:
        if out is not None and err is not None:
            kept = os.dup(out)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, out)
            os.dup2(err, out)
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield


def _descriptor(stream: TextIO | None) -> int | None:
    """Return the file descriptor of a stream; None if it is closed, or is not a file."""
    try:
        return stream.fileno() if stream else None
    except (OSError, ValueError):
        return None
