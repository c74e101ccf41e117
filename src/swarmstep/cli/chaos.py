"""The command ``swarmstep chaos``: a run in a storm, and whether anything was lost."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep.chaos import disk
from swarmstep.chaos.recovery import PHASES
from swarmstep.chaos.runner import RunContext, loss_of, run_supervised, simulated_losses
from swarmstep.chaos.schedule import ABOUT, KINDS, QUIET, ScheduledFault, schedule
from swarmstep.chaos.verdict import complaints, summarize
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.launch.processes import Outcome, noting_interrupts
from swarmstep.network import link, namespaces
from swarmstep.train.run_folder import RunFolder, plain
from swarmstep.workloads import load

ENDLESS = 1_000_000  # steps: more than any storm lasts for
SAVED_EVERY = 5.0  # seconds between checkpoints, at the given pace
DESCRIPTION = (
    "Train with real processes while a seeded schedule of faults strikes them, and say what was lost:\n"
    + "\n".join(f"  {kind:5} {about}" for kind, about in ABOUT.items())
    + f"""
The last {QUIET:g} s of the run are free of faults, so that the last victims can come back. A fault whose victim is
no healthy member strikes the next one; one that would leave fewer than two waits. Before the storm the
same run goes without faults for a while, after it simulated ones take as many steps, to compare with.
Everything is in DIR: storm/storm.jsonl has the faults, storm/events/ what each worker did. Only the checkpoints
of a storm with full disks are not: they are on a file system of their own, which goes with the storm."""
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `chaos`."""
    add = parser.add_argument
    add("workload", metavar="WORKLOAD", help="digits, mnist, cifar10, or path/to/file.py:workload")
    add("--workers", type=int, default=8, metavar="W", help="how many workers, at least 3 (default: 8)")
    add("--minutes", type=float, default=5.0, metavar="M", help="how long the storm is (default: 5)")
    add("--faults-per-hour", type=float, default=120.0, metavar="F", help="how many (default: 120)")
    add("--kinds", metavar="A,B,...", help=f"kinds of faults (default: {','.join(KINDS)}, as far as possible)")
    add("--seed", type=int, default=0, metavar="S", help="of the schedule and the run (default: 0)")
    add("--strategy", default="swarm", metavar="NAME", help="how the workers synchronize (default: swarm)")
    add("--every", type=int, default=16, metavar="N", help="steps between rounds (default: 16)")
    add("--pace", type=float, default=0.1, metavar="SECONDS", help="least duration of a step (default: 0.1)")
    add("--silence", type=float, default=2.0, metavar="SECONDS", help="a worker without a sign of life for so "
        "long is given up (default: 2)")  # fmt: skip
    add("--link", default="1gbit", metavar="SPEC", help=f"of each worker, as root (default: 1gbit): {link.SPEC}")
    add("--baseline-seconds", type=float, default=30.0, metavar="S", help="length of the run without faults that "
        "the throughput is compared with; 0: none (default: 30)")  # fmt: skip
    add("--fault-free-runs", type=int, default=3, metavar="K", help="simulated runs that the loss is compared "
        "with, 0 or at least 2 (default: 3)")  # fmt: skip
    add("--data", metavar="DIR", help="data folder (default: SWARMSTEP_DATA, or ./data)")
    add("--out", metavar="DIR", help="new folder for everything (default: one below runs/)")
    add("--json", action="store_true", help="print one JSON object as the last line")


def run(args: argparse.Namespace) -> int:
    """Carry it out and print the verdict; return 0 if nothing was lost, else 1."""
    check(args)
    load(args.workload, Path(args.data) if args.data else None)
    kinds, skipped = possible(args.kinds)
    for kind, why in skipped.items():
        _say(f"{kind} is left out: {why}")
    faults = schedule(args.seed, 60.0 * args.minutes, args.faults_per_hour, args.workers, kinds)
    out = Path(args.out) if args.out else _new_folder(args)
    held = RunFolder(out)
    try:
        with noting_interrupts(signal.SIGHUP) as interrupts:
            summary, outcome = _carry_out(args, out, faults, interrupts)
        said = complaints(summary, args.faults_per_hour)
        if outcome.code:
            said.append(f"the run ended with code {outcome.code}: {outcome.message}")
        summary |= {"skipped": skipped, "complaints": said, "good": not said, "command": command_line(args)}
        held.write("chaos.json", {**vars_of(args), **summary})
    finally:
        held.close()
    print(json.dumps(plain(summary)) if args.json else f"{in_words(summary)}\nfiles in {out}")
    return 1 if said else 0


def vars_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a storm, without what is this machine's, or says how it is shown."""
    return {name: value for name, value in vars(args).items() if name not in ("command", "json", "out", "data")}


def command_line(args: argparse.Namespace) -> str:
    """Return the command that makes this storm, without the folders of this machine."""
    parser = argparse.ArgumentParser()
    add_options(parser)
    words = ["swarmstep", "chaos", args.workload]
    for name, value in vars_of(args).items():
        if value != parser.get_default(name) and name != "workload":
            words += [f"--{name.replace('_', '-')}", f"{value:.12g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


def _carry_out(
    args: argparse.Namespace, out: Path, faults: Sequence[ScheduledFault], interrupts: list[int]
) -> tuple[dict[str, Any], Outcome]:
    disk.remove_leftovers()
    with contextlib.ExitStack() as stack:
        network = None
        if _lacks(namespaces.check_rights) is None:
            network = stack.enter_context(namespaces.Network(args.workers, link.parse(args.link), args.seed))
        context = RunContext(args.workers, network, interrupts, _say)
        baseline = None
        if args.baseline_seconds:
            _say(f"{args.baseline_seconds:g} s without faults")
            baseline, outcome = run_supervised(elastic(args), out / "baseline", args.baseline_seconds, context)
            if outcome.code:
                return summarize(baseline, None, None, []), outcome
        where = "in network namespaces" if network else "on loopback"
        _say(f"{60 * args.minutes:g} s with {len(faults)} faults, {args.workers} workers {where}")
        storm, outcome = run_supervised(elastic(args), out / "storm", 60.0 * args.minutes, context, faults)
    steps = storm.rounds[-1].step if storm.rounds else 0
    losses: list[float] = []
    if steps and args.fault_free_runs:
        _say(f"{args.fault_free_runs} simulated runs of {steps} steps without faults")
        seeds = [args.seed + 1 + index for index in range(args.fault_free_runs)]
        losses = simulated_losses(simulation(args, steps), seeds, out, context)
    return summarize(storm, baseline, loss_of(out / "storm"), losses), outcome


def elastic(args: argparse.Namespace) -> list[str]:
    """Return the command line of the storm's workers."""
    saved = max(1, round(SAVED_EVERY / args.pace)) if args.pace else ENDLESS
    return [
        *_same(args, ENDLESS),
        *("--elastic", "local", "--seed", str(args.seed), "--checkpoint-every", str(saved)),
        *("--pace", str(args.pace), "--silence", str(args.silence)),
    ]


def simulation(args: argparse.Namespace, steps: int) -> list[str]:
    """Return the command line of a fault-free run of so many steps."""
    return [*_same(args, steps), "--backend", "sim", "--shards", "dealt", "--checkpoint-every", str(steps)]


def _same(args: argparse.Namespace, steps: int) -> list[str]:
    found = ["train", args.workload, "--strategy", args.strategy, "--every", str(args.every)]
    found += ["--workers", str(args.workers), "--steps", str(steps), "--eval-every", str(steps)]
    return [*found, "--schedule", "constant", *(["--data", args.data] if args.data else [])]


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options out of range, before anything is read or written."""
    for name, low, high in (
        ("workers", 3, 200),
        ("minutes", QUIET / 60, 1e5),
        ("faults_per_hour", 1e-3, 36_000),
        ("every", 1, 1e6),
        ("pace", 0, 60),
        ("silence", 2, 1e6),
        ("baseline_seconds", 0, 1e5),
        ("fault_free_runs", 0, 100),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            option = name.replace("_", "-")
            raise UsageError(f"--{option}: expected {low:g} to {high:g}, found {value:g}")
    if args.minutes * 60 <= QUIET:
        raise UsageError(f"--minutes: expected more than the {QUIET:g} s that stay quiet, found {args.minutes:g}")
    if args.fault_free_runs == 1:
        raise UsageError("--fault-free-runs: expected 0, or 2 and more, which have a standard deviation; found 1")
    link.parse(args.link)


def possible(kinds: str | None) -> tuple[list[str], dict[str, str]]:
    """Return the kinds of faults that this process may make, and for the others why not.

    Args:
        kinds: as the user names them, with commas (None: all).

    Raises:
        UsageError: a name is unknown, or none of them is possible.
    """
    wanted = [*dict.fromkeys(kinds.split(","))] if kinds else [*KINDS]
    unknown = [kind for kind in wanted if kind not in KINDS]
    if unknown:
        raise UsageError(f"--kinds: expected some of {', '.join(KINDS)}, found {unknown[0]!r}")
    rights = {"cut": namespaces.check_rights, "disk": disk.check_rights}
    skipped = {kind: why for kind in wanted if kind in rights and (why := _lacks(rights[kind]))}
    if len(skipped) == len(wanted):
        raise UsageError(f"--kinds: none of them is possible: {'; '.join(skipped.values())}")
    return [kind for kind in wanted if kind not in skipped], skipped


def _lacks(check_rights: Any) -> str | None:
    try:
        check_rights()
        return None
    except UsageError as error:
        return str(error)


def _new_folder(args: argparse.Namespace) -> Path:
    """Make a folder with a name that was not taken, such as runs/chaos-mnist-w8-s0-2."""
    name = f"chaos-{Path(args.workload.split(':')[0]).stem}-w{args.workers}-s{args.seed}"
    for number in range(1, 10_000):
        path = Path("runs") / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir(parents=True)
            return path
        except FileExistsError:
            continue
        except OSError as error:
            raise CheckpointError(f"{path} cannot be made: {error.strerror}; give --out") from None
    raise CheckpointError(f"runs/{name} and all that come after it are taken; give --out")


def in_words(summary: Mapping[str, Any]) -> str:
    """Return the verdict as people read it."""
    struck = f"{summary['faults']} faults in {summary['seconds']:.0f} s, {summary['survived']} survived"
    lines = [f"{struck}; {summary['scheduled']} were scheduled, {summary['given_up']} given up"]
    for kind, found in summary["kinds"].items():
        times = [f"{name} in {_times(found[name])}" for name in PHASES if found[name]]
        count = f"{found['survived']} of {found['faults']} survived"
        lines.append(f"  {kind}: {', '.join([count, *times])}")
    lines += [f"  {kind}: left out: {why}" for kind, why in summary["skipped"].items()]
    rounds = f"{summary['committed_rounds']} committed rounds, {summary['lost_rounds']} of them lost"
    lines.append(f"{rounds}; {summary['wiped_states']} wiped states; {summary['restarts']} restarts")
    if not summary["digest"]:
        lines.append("the method has no shared vector: a wiped state is seen by its round only, not by a digest")
    if summary["live_workers"] is not None:
        live, members, averaged = (summary[f"{n}_workers"] for n in ("live", "participating", "averaged"))
        lines.append(f"on average {live:.2f} workers live, {members:.2f} participating, {averaged:.2f} averaged")
        share = summary["lost_worker_steps"] / max(1, summary["committed_worker_steps"])
        lines.append(
            f"work lost: at most {summary['lost_worker_steps']} local steps, {share:.2%} of what was kept"
        )
    if summary["throughput_ratio"] is not None:
        lines.append(f"throughput per live worker: {summary['throughput_ratio']:.3f} of the fault-free one")
    if summary["final_loss"] is not None:
        mean, spread = summary["fault_free_loss"], summary["fault_free_deviation"]
        beside = "" if mean is None else f"; without faults {mean:.4f}, standard deviation {spread:.4f}"
        lines.append(f"test loss {summary['final_loss']:.4f}{beside}")
    verdict = "; ".join(summary["complaints"]) or "nothing was lost"
    return "\n".join([*lines, f"verdict: {verdict}"])


def _times(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} s (at most {found['max']:.2f} s)"


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"chaos: {message}", file=sys.stderr, flush=True)
