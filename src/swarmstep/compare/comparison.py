"""Runs a comparison in its folder: plans it from the settings, carries it out, describes it for reports."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from swarmstep.compare import evaluations, results
from swarmstep.compare.cells import is_finite
from swarmstep.compare.methods import Method, parse_all
from swarmstep.compare.plan import Measure, TaskGroup, Tuning, grid
from swarmstep.compare.results import Results
from swarmstep.compare.runner import Runner
from swarmstep.compare.settings import SAME, ComparisonSettings
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.network import link, virtual_clock
from swarmstep.train.config import ASYNCHRONOUS
from swarmstep.train.run_folder import locked, replace_file
from swarmstep.workloads import Workload, load

T = TypeVar("T")


def compare(settings: ComparisonSettings, folder: Path, command: str) -> tuple[Results, dict[str, Any]]:
    """Run the cells that a comparison lacks.

    Args:
        settings: of the comparison.
        folder: new, empty, or of an earlier call, whose cells are kept.
        command: the command line, for the report.

    Returns:
        All results in the folder, and the counts of its cells: "cells", "failed", "runs" (without trials of
        tuning, failed or not), "finite" (runs with a finite result), and "out".

    Raises:
        UsageError: a setting is invalid, this process lacks rights, or SciPy is not installed.
        CheckpointError: the folder is in use or cannot be written.
        Interrupted: the user asked to stop; finished cells are kept.
    """
    _check(settings)
    methods = parse_all(settings.strategies)
    _check_asynchronous(methods, settings)
    workload = load(settings.workload, Path(settings.data) if settings.data else None)
    everies = _list(settings.every, _whole, "--every")
    target = _target(settings, folder, workload)
    measure, why = _measure(target, workload)
    groups = grid(methods, everies, _conditions(settings), _group_maker(settings, workload, measure))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = locked(folder / "lock")
    except BlockingIOError:
        raise CheckpointError(f"{folder} is in use by another comparison; wait for it, or end it") from None
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; give another --out") from None
    with lock:
        runner = Runner(folder, settings.jobs or os.cpu_count() or 1, groups, workload)  # checks the groups
        about = json.dumps(
            _about(settings, command, _before(folder), target, f"validation {measure}, {why}"), indent=1
        )
        replace_file(folder / "compare.json", lambda partial: partial.write_text(about + "\n"))
        runner.run()
        runs = [cell for cell in (*runner.cells.values(), *runner.failed.values()) if cell.purpose == "run"]
        return results.load(folder), {
            "cells": len(runner.cells),
            "failed": len(runner.failed),
            "runs": len(runs),
            "finite": sum(map(is_finite, runs)),
            "out": str(folder),
        }


def _check(settings: ComparisonSettings) -> None:
    """Check specifications and rights, before anything is read or written; raise UsageError."""
    for spec in settings.link:
        link.parse(spec)
    if settings.backend == "netns":
        from swarmstep.network.namespaces import check_rights

        check_rights()
    virtual_clock.parse_failures(settings.failures)
    for workers in _list(settings.workers, _whole, "--workers"):
        virtual_clock.parse_stragglers(settings.stragglers, workers)


def _check_asynchronous(methods: Sequence[Method], settings: ComparisonSettings) -> None:
    """Raise UsageError where there are asynchronous methods, and no virtual time to compare them in."""
    name = next((method.name for method in methods if method.name in ASYNCHRONOUS), None)
    if name and (settings.backend != "sim" or not settings.speeds):
        raise UsageError(
            f"{name} has no rounds, and is compared in virtual time: expected --backend sim and --speeds, such as "
            "--speeds 1,1,1,3"
        )


def _conditions(settings: ComparisonSettings) -> list[dict[str, Any]]:
    """Return the fields of a Config for each condition."""
    specs = [None if spec == "none" else spec for spec in settings.fault.split(",")]
    workers = _list(settings.workers, _whole, "--workers")
    combinations = itertools.product(workers, settings.shards.split(","), specs)
    return [{"workers": count, "shards": shards, "fault": fault} for count, shards, fault in combinations]


def _measure(target: Mapping[str, float], workload: Workload) -> tuple[Measure, str]:
    """Return what trials of tuning are judged by, and why: the metric by which methods are judged afterwards."""
    if "loss" in target:
        return "loss", "as the target is a loss"
    if workload.metrics:
        return "metric", f"as methods are ranked by its {next(iter(workload.metrics))}"
    if workload.correct is None:
        return "loss", "as the workload has no accuracy"
    return "accuracy", "as " + (
        "the target is one" if target else "without a target methods are ranked by accuracy"
    )


def _group_maker(
    settings: ComparisonSettings, workload: Workload, measure: Measure
) -> Callable[[Method, Mapping[str, Any]], TaskGroup]:
    """Return a function that makes a group of a method and its own fields of a Config."""
    defaults = workload.defaults
    steps, batch = settings.steps or defaults.steps, settings.batch or defaults.batch
    rates = [defaults.lr * factor for factor in (1 / 3, 1, 3)]
    if settings.lr_grid:
        rates = _list(settings.lr_grid, _rate, "--lr-grid")
    tuning = Tuning(
        rates=tuple(sorted({float(f"{rate:.3g}") for rate in rates})),
        extra=settings.extra_trials,
        steps=max(1, steps // 2) if settings.tune_steps is None else settings.tune_steps,
        measure=measure,
    )
    same = {name: getattr(settings, name) for name in SAME}
    common = {"workload": settings.workload, "data": settings.data, **same, "checkpoint_every": steps}
    if settings.backend != "sim":
        common |= {"backend": "gloo", "fast_sums": True, "until_accuracy": settings.target_accuracy}
    seeds = tuple(range(settings.seeds))
    real_link = settings.link[0] if settings.backend == "netns" else None

    def make(method: Method, fields: Mapping[str, Any]) -> TaskGroup:
        merged = {**common, **fields}
        if merged["eval_every"] is None:
            merged["eval_every"] = evaluations.interval(workload, steps, batch, fields["workers"])
        return TaskGroup(method, merged, seeds, tuning, real_link)

    return make


def _before(folder: Path) -> Mapping[str, Any]:
    return results.load_about(folder) if (folder / "compare.json").exists() else {}


def _target(settings: ComparisonSettings, folder: Path, workload: Workload) -> dict[str, float]:
    """Return {"accuracy": A}, {"loss": L}, {metric: M} or {}; without a new one, that of earlier calls."""
    if settings.target_metric is not None and not workload.metrics:
        raise UsageError(
            f"--target-metric: {workload.name} has no metric of its own; give --target-accuracy or --target-loss"
        )
    target = {"accuracy": settings.target_accuracy, "loss": settings.target_loss}
    target |= dict.fromkeys([*workload.metrics][:1], settings.target_metric)
    return {name: value for name, value in target.items() if value is not None} or _before(folder).get(
        "target", {}
    )


def _about(
    settings: ComparisonSettings,
    command: str,
    before: Mapping[str, Any],
    target: Mapping[str, float],
    tuned_on: str,
) -> dict[str, Any]:
    """Return the content of compare.json: all commands so far, and target, links and clock options of the last."""
    commands = [*before.get("command", "").splitlines()]
    clock = {name: getattr(settings, name) for name in ("compute", "stragglers", "failures")}
    links: Sequence[str] = settings.link if settings.backend == "sim" else []
    return {
        "title": settings.title or before.get("title") or f"{settings.workload}: which method, which n",
        "command": "\n".join(commands if command in commands else [*commands, command]),
        "target": target,
        "tuned_on": {**before.get("tuned_on", {}), settings.workload: tuned_on},
        "links": list(dict.fromkeys([*before.get("links", []), *links])),
        "clock": {**before.get("clock", {}), **{name: value for name, value in clock.items() if value}},
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
