"""A trial: a run under faults, the runs it is compared with, and the verdict, in one folder."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from swarmstep.chaos import disk, etcd, memory
from swarmstep.chaos.command_line import command_line, elastic, own_settings, simulation
from swarmstep.chaos.growth import SAMPLES, growth_of
from swarmstep.chaos.runner import RunContext, loss_of, run_supervised, simulated_losses
from swarmstep.chaos.schedule import IMPOSSIBLE, KINDS, TABLE, ScheduledFault, schedule
from swarmstep.chaos.settings import ChaosSettings
from swarmstep.chaos.verdict import complaints, summarize
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.launch.processes import Outcome
from swarmstep.launch.stopping import noting_interrupts
from swarmstep.network import link, namespaces
from swarmstep.train.run_folder import RunFolder
from swarmstep.workloads import load

LINKS = ("cut", "crash", "mute", "deaf", "loss", "delay")  # kinds of faults that need a network of namespaces


def run_trial(settings: ChaosSettings, folder: Path | None) -> tuple[dict[str, Any], Path]:
    """Carry out a trial.

    Args:
        settings: of the trial.
        folder: for all files, new or empty; None for a new one below runs/.

    Returns:
        The verdict, in which "good" means that nothing was lost, and the folder.

    Raises:
        UsageError: this process cannot inject any of the kinds of faults, or the workload does not exist.
        CheckpointError: the folder cannot be used.
        Interrupted: the user asked to stop.
    """
    load(settings.workload, Path(settings.data) if settings.data else None)
    kinds, skipped = possible(settings.kinds, settings.store)
    for kind, reason in skipped.items():
        _report(f"{kind} is skipped: {reason}")
    amount = 60.0 * settings.minutes, settings.faults_per_hour, settings.workers
    faults = schedule(settings.seed, *amount, kinds, settings.together)
    out = folder or _new_folder(settings)
    run_folder = RunFolder(out)
    try:
        with noting_interrupts() as interrupts:
            summary, outcome = _carry_out(settings, out, faults, interrupts)
        failures = complaints(summary, settings.faults_per_hour)
        if outcome.code:
            failures.append(f"the run ended with code {outcome.code}: {outcome.message}")
        summary |= {"skipped": skipped, "complaints": failures, "good": not failures}
        summary["growth"] = growth_of(out / "storm" / SAMPLES)
        summary["command"] = command_line(settings)
        run_folder.write("chaos.json", {**own_settings(settings), **summary})
    finally:
        run_folder.close()
    return summary, out


def _carry_out(
    settings: ChaosSettings, out: Path, faults: Sequence[ScheduledFault], interrupts: list[int]
) -> tuple[dict[str, Any], Outcome]:
    disk.remove_leftovers()
    with contextlib.ExitStack() as stack:
        network = None
        if _missing_rights(namespaces.check_rights) is None:
            hosts = settings.workers + (etcd.MACHINES if settings.store else 0)
            switched = any(fault.kind in ("loss", "delay") for fault in faults)
            network = stack.enter_context(
                namespaces.Network(hosts, link.parse(settings.link), settings.seed, switched=switched)
            )
        store = stack.enter_context(etcd.Cluster(network)) if settings.store else None
        context = RunContext(
            settings.workers, network, interrupts, _report, store, min(settings.supervisors, settings.workers)
        )
        baseline = None
        if settings.baseline_seconds:
            _report(f"{settings.baseline_seconds:g} s without faults")
            baseline, outcome = run_supervised(
                elastic(settings), out / "baseline", settings.baseline_seconds, context
            )
            if outcome.code:
                return summarize(baseline, None, None, []), outcome
        seconds = 60.0 * settings.minutes
        where = "in network namespaces" if network else "on loopback"
        _report(f"{seconds:g} s with {len(faults)} faults, {settings.workers} workers {where}")
        run, outcome = run_supervised(elastic(settings), out / "storm", seconds, context, faults)
    steps = run.rounds[-1].step if run.rounds else 0
    losses: list[float] = []
    if steps and settings.fault_free_runs:
        _report(f"{settings.fault_free_runs} simulated runs of {steps} steps without faults")
        seeds = [settings.seed + 1 + index for index in range(settings.fault_free_runs)]
        losses = simulated_losses(simulation(settings, steps), seeds, out, context)
    return summarize(run, baseline, loss_of(out / "storm"), losses), outcome


def possible(kinds: str | None, store: str | None = None) -> tuple[list[str], dict[str, str]]:
    """Return the kinds of faults that this process can inject, and for the others why it cannot.

    Args:
        kinds: names separated by commas; None for all.
        store: "etcd" where the command starts one.

    Raises:
        UsageError: a name is unknown, or none of the kinds is possible.
    """
    wanted = [*dict.fromkeys(kinds.split(","))] if kinds else [*KINDS]
    unknown = [kind for kind in wanted if kind not in KINDS and kind not in IMPOSSIBLE]
    if unknown:
        raise UsageError(f"--kinds: expected some of {', '.join(KINDS)}, found {unknown[0]!r}")
    skipped = {kind: reason for kind in wanted if (reason := _reason_against(kind, store))}
    if len(skipped) == len(wanted):
        raise UsageError(f"--kinds: none of them is possible: {'; '.join(skipped.values())}")
    return [kind for kind in wanted if kind not in skipped], skipped


def _reason_against(kind: str, store: str | None) -> str | None:
    """Return why a kind of faults cannot be injected here; None if it can."""
    if kind in IMPOSSIBLE:
        return IMPOSSIBLE[kind]
    if TABLE[kind].strikes in ("store", "supervisor") and not store:
        return "it needs --store etcd"
    if TABLE[kind].strikes == "disk":
        return _missing_rights(disk.check_rights)
    if kind in LINKS:
        return _missing_rights(namespaces.check_rights)
    return _missing_rights(memory.check_rights) if kind == "memory" else None


def _missing_rights(check_rights: Callable[[], None]) -> str | None:
    try:
        check_rights()
        return None
    except UsageError as error:
        return str(error)


def _new_folder(settings: ChaosSettings) -> Path:
    """Create a folder with an unused name, such as runs/chaos-mnist-w8-s0-2."""
    name = f"chaos-{Path(settings.workload.split(':')[0]).stem}-w{settings.workers}-s{settings.seed}"
    for number in range(1, 10_000):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(f"{path} cannot be created: {error.strerror}; give --out") from None
    raise CheckpointError(f"runs/{name} and all its numbered variants exist; give --out")


def _report(message: str) -> None:
    with contextlib.suppress(OSError):  # standard error is closed
        print(f"chaos: {message}", file=sys.stderr, flush=True)
