"""The command ``swarmstep compare``: options, checks, and what it says at the end."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from swarmstep import specs
from swarmstep.compare import results
from swarmstep.compare.methods import SPEC, Method, parse_all
from swarmstep.compare.plan import TaskGroup, Tuning, grid
from swarmstep.compare.runner import Runner
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.network import link, virtual_clock
from swarmstep.train.run_folder import locked, plain, replace_file
from swarmstep.workloads import Defaults, load

T = TypeVar("T")

BACKENDS = ("sim", "gloo", "netns")
STRATEGIES = "swarm,diloco,local-sgd,pso-ps,synchronous"
SAME = ("model", "steps", "batch", "optimizer", "weight_decay", "schedule", "eval_every")  # as in a Config
DESCRIPTION = """Which method reaches the accuracy you want soonest, on your problem and your network.

Every method gets the same budget to tune its learning rate and its outer settings, on a validation
split; then it runs once with each seed. What is done is kept in DIR and never done again: the same
command goes on where it was stopped, another one adds to it. `swarmstep report DIR` makes a page of it."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare`."""
    add = parser.add_argument
    add("workload", metavar="WORKLOAD", help="digits, mnist, cifar10, or path/to/file.py:workload")
    add("--out", metavar="DIR", required=True, help="folder for the results")
    add("--strategies", metavar="A,B,...", default=STRATEGIES, help=f"{SPEC} (default: {STRATEGIES})")
    add("--every", metavar="N,...", default="16", help="steps between rounds (default: 16)")
    add("--workers", metavar="W,...", default="4", help="how many workers (default: 4)")
    add("--shards", metavar="SPEC,...", default="iid", help=f"who holds what (default: iid): {specs.SHARDS}")
    add(
        "--fault",
        metavar="SPEC,...",
        default="none",
        help=f"none, or what the last K ranks do wrong: {specs.FAULTS}",
    )
    add("--seeds", metavar="K", default="3", help="a run with each of the seeds 0 to K - 1 (default: 3)")
    target = parser.add_mutually_exclusive_group()
    target.add_argument("--target-accuracy", type=float, metavar="A", help="test accuracy to reach, 0 to 1")
    target.add_argument("--target-loss", type=float, metavar="L", help="test loss to reach")
    add("--lr-grid", metavar="LR,...", help="learning rates to try (default: the workload's, a third and three "
        "times of it); one: nothing is tuned")  # fmt: skip
    add("--extra-trials", type=int, default=1, metavar="K", help="trials after that, at the best rate: other "
        "settings of the method, or rates next to the best (default: 1)")  # fmt: skip
    add("--tune-steps", type=int, metavar="N", help="steps of a trial (default: half of --steps)")
    add("--model", metavar="NAME", help="one of the workload's models")
    add("--steps", type=int, metavar="N", help="local steps of each worker")
    add("--batch", type=int, metavar="B", help="examples a step and worker")
    add("--optimizer", choices=("sgd", "momentum", "adamw"), help="the inner optimizer")
    add("--weight-decay", type=float, metavar="X", help="of the inner optimizer")
    add("--schedule", choices=("constant", "cosine"), help="of the learning rate")
    add("--eval-every", type=int, metavar="N", help="steps between evaluations; the target is looked for there")
    add("--backend", choices=BACKENDS, default="sim", help="sim: no real network, but a virtual clock (default); "
        "gloo: real processes on loopback; netns: real ones on a real slow network (Linux, root)")  # fmt: skip
    add("--link", metavar="SPEC", action="append", default=[], help="of a worker; for the virtual clock any "
        f"number of them: {link.SPEC}")  # fmt: skip
    seconds = "of a local step, for the virtual clock (default: measured)"
    add("--compute", type=float, metavar="SECONDS", help=seconds)
    add("--stragglers", metavar="SPEC", help=f"for the virtual clock: {virtual_clock.STRAGGLERS}")
    add("--failures", metavar="SPEC", help=f"for the virtual clock: {virtual_clock.FAILURES}")
    add("--jobs", type=int, metavar="K", help="simulated cells at once (default: as many as there are cores)")
    add("--title", metavar="TEXT", help="of the report")
    add("--data", metavar="DIR", help="data folder (default: SWARMSTEP_DATA, or ./data)")
    add("--json", action="store_true", help="print one JSON object as the last line")


def run(args: argparse.Namespace, given: Sequence[str]) -> int:
    """Carry out the comparison and print what it found."""
    from swarmstep.compare.analysis import analyse
    from swarmstep.report import markdown

    _check(args)
    methods = parse_all(args.strategies)
    workload = load(args.workload, Path(args.data) if args.data else None)
    everies = _list(args.every, _whole, "--every")
    groups = grid(methods, everies, _conditions(args), _group_maker(args, workload.defaults))
    folder = Path(args.out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder / "lock")
    except BlockingIOError:
        raise CheckpointError(f"{folder} is in use by another comparison; wait for it, or end it") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; give another --out") from None
    with lock:
        runner = Runner(folder, args.jobs or os.cpu_count() or 1, groups, workload)  # which checks the groups
        about = json.dumps(_about(args, given, folder), indent=1)
        replace_file(folder / "compare.json", lambda partial: partial.write_text(about + "\n"))
        runner.run()
        found = results.load(folder)
    counts = {"cells": len(runner.cells), "failed": len(runner.failed), "out": str(folder)}
    print(json.dumps(plain(counts)) if args.json else _in_words(markdown(analyse([found])), counts))
    return 0


def _in_words(tables: str, counts: dict[str, Any]) -> str:
    lost = f", {counts['failed']} failed" if counts["failed"] else ""
    page = f"swarmstep report {shlex.quote(counts['out'])} -o report.html"
    return f"{tables}\n{counts['cells']} cells{lost}; as a page: {page}"


def _check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go together, before anything is read or written."""
    for spec in args.link:
        link.parse(spec)
    _check_backend(args)
    virtual_clock.parse_failures(args.failures)
    for workers in _list(args.workers, _whole, "--workers"):
        virtual_clock.parse_stragglers(args.stragglers, workers)
    for name, low, high in (
        ("target_accuracy", 0, 1),
        ("target_loss", 0, 1e9),
        ("compute", 0, 1e6),
        ("jobs", 0, 1e3),
    ):
        value = getattr(args, name)
        if value is not None and not low < value <= high:
            raise UsageError(
                f"--{name.replace('_', '-')}: expected above {low} and at most {high:g}, found {value:g}"
            )
    if args.extra_trials < 0:
        raise UsageError(f"--extra-trials: expected at least 0, found {args.extra_trials}")


def _check_backend(args: argparse.Namespace) -> None:
    if args.backend == "netns":
        from swarmstep.network.namespaces import check_rights

        check_rights()
        if len(args.link) != 1:
            raise UsageError(f"--backend netns: expected one --link, found {len(args.link)}")
    if args.backend == "gloo" and args.link:
        raise UsageError("--link: loopback has no limits; expected --backend netns, or sim with its virtual clock")
    if args.backend != "sim" and (args.compute or args.stragglers or args.failures):
        raise UsageError(
            "--compute, --stragglers and --failures are for the virtual clock; expected --backend sim"
        )


def _conditions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the fields of a Config for each condition."""
    specs = [None if spec == "none" else spec for spec in args.fault.split(",")]
    each = itertools.product(_list(args.workers, _whole, "--workers"), args.shards.split(","), specs)
    return [{"workers": workers, "shards": shards, "fault": fault} for workers, shards, fault in each]


def _group_maker(args: argparse.Namespace, defaults: Defaults) -> Callable[[Method, Mapping[str, Any]], TaskGroup]:
    """Return what makes a group of a method and the fields of a Config that are particular to it."""
    steps = args.steps or defaults.steps
    rates = _list(args.lr_grid, _rate, "--lr-grid") if args.lr_grid else [defaults.lr * x for x in (1 / 3, 1, 3)]
    tuning = Tuning(
        rates=tuple(sorted({float(f"{rate:.3g}") for rate in rates})),
        extra=args.extra_trials,
        steps=max(1, steps // 2) if args.tune_steps is None else args.tune_steps,
    )
    real = args.backend != "sim"
    same = {name: getattr(args, name) for name in SAME}
    common = {"workload": args.workload, "data": args.data, **same, "checkpoint_every": steps}
    if real:
        common |= {"backend": "gloo", "fast_sums": True, "until_accuracy": args.target_accuracy}
    seeds = tuple(range(_whole(args.seeds)))
    on = args.link[0] if args.backend == "netns" else None
    return lambda method, fields: TaskGroup(method, {**common, **fields}, seeds, tuning, on)


def _about(args: argparse.Namespace, given: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return what compare.json says: this command and those before it, and what the last one asks."""
    before = results.load_about(folder) if (folder / "compare.json").exists() else {}
    command = shlex.join(["swarmstep", *given])
    commands = [*before.get("command", "").splitlines()]
    clocked = {name: getattr(args, name) for name in ("compute", "stragglers", "failures") if getattr(args, name)}
    target = {"accuracy": args.target_accuracy, "loss": args.target_loss}
    return {
        "title": args.title or before.get("title") or f"{args.workload}: which method, which n",
        "command": "\n".join(commands if command in commands else [*commands, command]),
        "target": {name: value for name, value in target.items() if value is not None} or before.get("target", {}),
        "links": list(dict.fromkeys([*before.get("links", []), *(args.link if args.backend == "sim" else [])])),
        "clock": {**before.get("clock", {}), **clocked},
    }


def _list(text: str, kind: Callable[[str], T], option: str) -> list[T]:
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",")))
    except UsageError as error:
        raise UsageError(f"{option} {text!r}: {error}") from None


def _whole(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"expected whole numbers of at least 1, found {text!r}")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise UsageError(f"expected learning rates above 0, found {text!r}")
    return value
