"""The command ``swarmstep train``."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Annotated, Any, get_args

import typer

from swarmstep.cli.exit_codes import EXIT_CODES
from swarmstep.cli.json_output import Json, print_json, reserved_stdout
from swarmstep.cli.options import completion, fields_of, given, options_of, path
from swarmstep.cli.text import aligned, examples, literal
from swarmstep.console import in_bytes
from swarmstep.errors import ResultNotFinite, UsageError
from swarmstep.launch.stopping import StopRequest
from swarmstep.train.config import Config, Group, Invocation
from swarmstep.workloads.defaults import BUILT_IN, Defaults

app = typer.Typer(add_completion=False)


def defaults_table() -> str:
    """Return what the built-in workloads fill in for options that are not given."""
    rows = [["", *BUILT_IN]]
    for field in dataclasses.fields(Defaults):
        values = (str(getattr(workload.defaults, field.name)) for workload in BUILT_IN.values())
        rows.append([field.name.replace("_", "-"), *values])
    return _table("Defaults", rows)


def models_table() -> str:
    """Return the models of the built-in workloads; the first is the default."""
    return _table("Models", [[name, ", ".join(workload.models)] for name, workload in BUILT_IN.items()])


def _table(title: str, rows: list[list[str]]) -> str:
    return "\n".join([f"[bold]{title}[/bold]", *(f"  {literal(line)}" for line in aligned(rows))])


EPILOG = "\n\n".join(
    [
        examples(
            "swarmstep train digits",
            "swarmstep train mnist --strategy diloco --every 64 --set lr=0.7 --workers 8",
            "swarmstep train mnist --backend gloo --codec int8 --delay 8 --out runs/mnist",
            "swarmstep train path/to/file.py:workload --json",
            "swarmstep train --resume runs/mnist",
        ),
        defaults_table(),
        models_table(),
        EXIT_CODES,
    ]
)


@app.command("train", epilog=EPILOG)
@options_of(Config, Invocation, groups=get_args(Group))
def train(
    context: typer.Context,
    workload: Annotated[
        str | None,
        typer.Argument(
            metavar="WORKLOAD",
            parser=path,
            autocompletion=completion(BUILT_IN),
            help=f"{', '.join(BUILT_IN)}, or path/to/file.py:workload; left out with --resume",
        ),
    ] = None,
    as_json: Json = False,
    **values: Any,
) -> int:
    """Train a model with W workers, each on its own share of the data.

    Says how good the result is and what it cost. `swarmstep strategies` lists the methods that --strategy names,
    and `swarmstep strategies NAME` the settings of one for --set.
    """
    from swarmstep.train.session import Session

    settings = given(context, Config)
    if "every" in settings and "when" in settings:
        raise UsageError("--every and --when: give one of them")
    stop = StopRequest()
    session = Session(settings, Invocation(**fields_of(Invocation, values)), stop.requested)
    if session.starts_processes and not session.is_worker:
        return session.launch(context.obj)
    # A member of an elastic run hears its supervisor only.
    with contextlib.nullcontext() if session.is_member or session.is_node else stop, reserved_stdout(as_json):
        summary = session.work() if session.is_worker else session.simulate()
    if summary is not None:
        print_summary(summary, as_json=as_json)
        _check_finite(summary)
    return 0


def print_summary(summary: dict[str, Any], *, as_json: bool) -> None:
    """Print how a run ended: for a person, or as JSON."""
    from swarmstep.train.work_done import WorkDone, unequal, work_table

    if as_json:
        print_json(summary)
        return
    accuracy = summary["test_accuracy"]
    judged = f"test accuracy {accuracy:.4f}, " if accuracy == accuracy else ""  # NaN: has no meaning here
    sent, received = summary["bytes_sent_per_worker"], summary["bytes_received_per_worker"]
    measures = [
        name for name in summary if name.startswith("test_") and name not in ("test_accuracy", "test_loss")
    ]
    also = "".join(f"{name.replace('_', ' ')} {summary[name]:.4f}, " for name in measures)
    print(f"{judged}test loss {summary['test_loss']:.4f}, {also}training loss {summary['train_loss']:.4f}")
    print(f"{summary['rounds']} rounds; each worker sent {in_bytes(sent)} and received {in_bytes(received)}")
    print(f"{summary['seconds']:.1f} s, {summary['sync_seconds']:.1f} s of them synchronizing")
    by_worker = [WorkDone(**row) for row in summary["by_worker"]]
    if unequal(by_worker):
        print("\n".join(aligned(work_table(by_worker))))
    if "shares" in summary:
        print(f"shares of the work at the end: {', '.join(map(str, summary['shares']))}")
    for worker in summary["distrusted"]:
        print(f"distrusted: rank {worker['rank']} since step {worker['since']}: {worker['why']}")
    if summary["out"]:
        print(f"files in {summary['out']}")


def _check_finite(summary: dict[str, Any]) -> None:
    """Raise ResultNotFinite where a loss of the summary is not finite."""
    losses = ["test_loss", "validation_loss", "train_loss"]
    if summary["elastic"] in ("local", "torchft"):
        losses.remove("train_loss")  # of the last round, from those that were finite; NaN: there was no round
    bad = [f"{name} is {summary[name]}" for name in losses if not math.isfinite(summary[name])]
    if bad:
        raise ResultNotFinite(
            f"the run is done, but its result is not finite: {', '.join(bad)}; expected numbers: lower the "
            "learning rate, or look at the data and the loss"
        )
