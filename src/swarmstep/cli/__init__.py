"""The command ``swarmstep``: one file for each subcommand.

A new one is a module here with a Typer `app`, and a line in `COMMANDS` in app.py. It imports torch when it is called.
"""

from swarmstep.cli.app import main

__all__ = ["main"]
