"""The command ``swarmstep bench``, with one command for each benchmark."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import typer

from swarmstep.cli.json_output import Json, print_json, reserved_stdout
from swarmstep.cli.options import options_of
from swarmstep.cli.text import examples
from swarmstep.microbench.benchmarks import BENCHMARKS, JOB, BenchmarkEntry

if TYPE_CHECKING:
    from swarmstep.launch.processes import Place
    from swarmstep.microbench.results import Report
    from swarmstep.microbench.settings import BenchSettings

app = typer.Typer(
    add_completion=False,
    help="Measure what a round costs on this machine, as ratios of times in one run.",
    epilog=examples("swarmstep bench round", "swarmstep bench wire --workers 2 --parameters 1e6 --json"),
)


def _command(name: str, entry: BenchmarkEntry) -> Callable[..., int]:
    @options_of(entry.settings)
    def bench(as_json: Json = False, **values: Any) -> int:
        if JOB in os.environ:  # a process that the command has started
            from swarmstep.microbench.workers import work

            work(json.loads(os.environ[JOB]))
        else:
            _lead(name, entry, entry.settings(**values), as_json=as_json)
        return 0

    return bench


for _name, _entry in BENCHMARKS.items():
    app.command(_name, help=f"Measure {_entry.about}.")(_command(_name, _entry))


def _lead(name: str, entry: BenchmarkEntry, asked: BenchSettings, *, as_json: bool) -> None:
    from swarmstep.microbench.checks import checked
    from swarmstep.microbench.machine import machine
    from swarmstep.microbench.table import show
    from swarmstep.microbench.workers import start_group

    def group(workers: int, settings: Mapping[str, Any], place: Place | None = None) -> Report:
        if sys.stderr and sys.stderr.isatty():
            print(f"{name}: measuring with {workers} process{'es' * (workers > 1)}", file=sys.stderr, flush=True)
        return start_group(name, workers, settings, asked.patience, place)

    checked(asked, seed=(0, 2**62), patience=(1.0, 1e6))
    about = machine()
    with reserved_stdout(as_json):
        report = entry.load().lead(asked, group)
    if as_json:
        print_json({"benchmark": name, "machine": about, **json.loads(report.dumps())})
    else:
        show(report, about)
