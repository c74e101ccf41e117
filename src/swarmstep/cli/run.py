"""The command ``swarmstep run``: a training loop of one's own in workers that may be lost and come back."""

from __future__ import annotations

import argparse
from pathlib import Path

from swarmstep.errors import UsageError
from swarmstep.train.supervise import supervise

DESCRIPTION = (
    "Run W processes of a Python program on this machine, and start again those that die. Each joins the others "
    "by `Membership.from_env()`; examples/elastic.py shows how. A process that ends with 0 says that the run is "
    "over."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `run`."""
    add = parser.add_argument
    add("program", metavar="PROGRAM.py", help="the program")
    add("arguments", nargs=argparse.REMAINDER, metavar="...", help="its arguments")
    add("--workers", type=int, default=4, metavar="W", help="how many processes (default: 4)")


def run(args: argparse.Namespace) -> int:
    """Run the program to its end; return its exit code.

    Raises:
        UsageError: there is no such program, or no worker.
    """
    program = Path(args.program)
    if program.suffix != ".py" or not program.is_file():
        raise UsageError(f"run: expected a Python program that ends in .py, found {args.program}")
    if not 1 <= args.workers <= 1000:
        raise UsageError(f"--workers: expected 1 to 1000, found {args.workers}")
    return supervise(args.arguments, args.workers, None, program=str(program.resolve()))
