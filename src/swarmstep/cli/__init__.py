"""The command ``swarmstep``: one file for each subcommand.

A new one is a module here with a Typer `app`, and a line in `COMMANDS` in app.py. torch is imported when it is
called, not before.
"""

from swarmstep.cli.app import main

__all__ = ["main"]
