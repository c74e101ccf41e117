"""The command ``swarmstep``: one file for each subcommand."""

from swarmstep.cli.app import main

__all__ = ["main"]
