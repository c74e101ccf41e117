"""For a process that forks workers: importing this builds all commands, and what reads their options."""

from swarmstep.cli.app import COMMANDS, load

for _name in COMMANDS:
    load(_name)
load("train").make_context("train", [])  # typer builds what reads an option's value when it first reads one
