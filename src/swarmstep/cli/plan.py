"""The command ``swarmstep plan``: how rarely to synchronize on one's network."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swarmstep.cli.json_output import Json, print_json, reserved_stdout
from swarmstep.cli.options import options_of, path
from swarmstep.cli.text import aligned, examples
from swarmstep.console import in_bytes, plain
from swarmstep.planner.settings import PlanSettings

if TYPE_CHECKING:
    from swarmstep.planner.prices import Plan, Price

app = typer.Typer(add_completion=False)

EPILOG = examples(
    "swarmstep plan mnist --workers 4 --link 100mbit,20ms",
    "swarmstep plan my.py:workload --workers 8 --link 1gbit --strategy diloco",
    "torchrun --nnodes 2 ... -m swarmstep plan my.py:workload --measure",
)


@app.command("plan", epilog=EPILOG)
@options_of(PlanSettings)
def plan(
    context: typer.Context,
    out: Annotated[
        str | None, typer.Option(metavar="FILE", parser=path, help="write the plan there, too, as JSON")
    ] = None,
    as_json: Json = False,
    **values: Any,
) -> int:
    """Say how rarely to synchronize on your network: seconds a step for DDP and each n, before you train there.

    The step is measured in this process, the network is computed (docs/virtual-clock.md); with --measure both are
    measured in real processes.
    """
    settings = PlanSettings(**values)
    from swarmstep.launch.processes import launch
    from swarmstep.train.environment import started_as
    from swarmstep.train.run_folder import replace_file

    in_group = started_as().group_size is not None
    if settings.measure and not in_group:
        return launch(context.obj, settings.workers)
    with reserved_stdout(as_json):
        planned = _planned(settings, in_group=in_group)
    if planned is None:
        return 0
    found, steps = planned
    if out:
        replace_file(Path(out), lambda partial: partial.write_text(json.dumps(plain(_as_json(found))) + "\n"))
    print_json(_as_json(found)) if as_json else print(_described(found, settings, steps))
    return 0


def _planned(settings: PlanSettings, *, in_group: bool) -> tuple[Plan, int] | None:
    """Return the plan, and the steps of a run; None on the other ranks of a group."""
    import torch

    from swarmstep.comm.dist import DistComm
    from swarmstep.network.link import parse
    from swarmstep.planner.group import measured_among
    from swarmstep.planner.measure import measured
    from swarmstep.planner.prices import plan as planned
    from swarmstep.train.build import resolve
    from swarmstep.train.environment import threads
    from swarmstep.workloads import load

    torch.set_num_threads(threads())
    link = parse(settings.link) if settings.link else None
    comm = DistComm.from_env("gloo", exact=True) if in_group else None
    try:
        config = dataclasses.replace(settings.config, workers=comm.size if comm else settings.workers)
        workload = load(config.workload, Path(config.data) if config.data else None)
        config = resolve(config, workload)
        work = None if comm and comm.rank else measured(config, workload, (settings.codec,))
        if comm:
            work, link = measured_among(comm, config, workload, link, work)
        if work is None:
            return None
        assert link is not None
        steps = config.training.steps
        return planned(work, config.workers, link, config.strategy, settings.everies, steps), steps
    finally:
        if comm:
            comm.close()


def _as_json(found: Plan) -> dict[str, Any]:
    return dataclasses.asdict(found)


def _described(found: Plan, settings: PlanSettings, steps: int) -> str:
    from swarmstep.network.link import in_words
    from swarmstep.planner.prices import FEWEST, GOAL

    work, advised = found.work, found.advised
    lines = [
        f"{work.parameters:,} parameters, {1000 * work.step_seconds:.3g} ms a step, {found.workers} workers, "
        f"each at {', '.join(in_words(found.link, 3))}",
        f"memory of a worker without activations: {in_bytes(work.bytes_kept)}",
        "",
        *aligned([("method", "n", "codec", "overlap", "ms a step", "computing"), *map(_row, found.prices)]),
        "",
        f"smallest n with {100 * GOAL:.0f} % of the speed without rounds:",
        *aligned([(name, f"n = {p.every}" if p else "none") for name, p in found.smallest.items()]),
        "",
    ]
    if not any(found.smallest.values()):
        lines += [
            f"n = 1 to {found.most} do not reach that, and of a larger n {steps:,} steps have fewer than {FEWEST} "
            "rounds.",
            f"The fastest takes {1000 * advised.seconds:.3g} ms a step: train longer, or use a larger batch.",
            "",
        ]
    command = _command(advised, settings, found.workers)
    return "\n".join([*lines, "start it with", f"  {command}", "", *_against(advised, steps)])


def _row(price: Price) -> tuple[str, ...]:
    overlap = f"{price.delay} steps" if price.delay else ""
    share = f"{100 * price.computing:.0f} %"
    return (
        price.method,
        str(price.every),
        price.codec or "float32",
        overlap,
        f"{1000 * price.seconds:.3g}",
        share,
    )


def _command(advised: Price, settings: PlanSettings, workers: int) -> str:
    words = ["swarmstep", "train", settings.workload, "--strategy", advised.method, "--every", str(advised.every)]
    words += ["--codec", advised.codec] if advised.codec else []
    words += ["--delay", str(advised.delay)] if advised.delay else []
    for name in ("model", "batch", "steps", "optimizer", "data"):
        value = getattr(settings, name)
        words += [f"--{name}", str(value)] if value is not None else []
    return shlex.join([*words, "--workers", str(workers), "--backend", "gloo"])


def _against(advised: Price, steps: int) -> list[str]:
    """Return what speaks against a large n in a run of so many steps."""
    return [
        "What speaks against a larger n than you need:",
        f"  {steps:,} steps have {steps // advised.every} rounds of n = {advised.every}.",
        "  The result gets worse with n (docs/results.md, the paper's question: n = 1 to 256).",
        "  A worker that is lost takes its steps since the last round with it.",
    ]
