"""The command ``swarmstep train``."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
from typing import Any

from swarmstep import specs
from swarmstep.errors import UsageError
from swarmstep.train import config
from swarmstep.train.config import Config, Invocation
from swarmstep.workloads import BUILT_IN

DESCRIPTION = "Train one network with W workers, each on its own shard, and say how well and at what cost."


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    add = parser.add_argument
    add("workload", nargs="?", metavar="WORKLOAD", help="digits, mnist, cifar10, or path/to/file.py:workload")
    add("--strategy", metavar="NAME", help="how the workers synchronize (default: swarm)")
    add("--set", metavar="NAME=VALUE", action="append", dest="settings", help="a setting of the strategy")
    add("--every", type=int, metavar="N", help="steps between rounds")
    add("--when", metavar="SPEC", help=f"in place of --every: {specs.TRIGGERS}")
    add("--workers", type=int, metavar="W", help="how many workers (default: 4)")
    add("--backend", choices=config.BACKENDS, help="sim: in this process (default); gloo, nccl: real processes")
    add("--shards", metavar="SPEC", help=f"who holds what (default: iid): {specs.SHARDS}")
    add("--fault", metavar="SPEC", help=f"what the last K ranks do wrong: {specs.FAULTS}")
    add("--model", metavar="NAME", help="one of the workload's models")
    add("--steps", type=int, metavar="N", help="local steps of each worker")
    add("--batch", type=int, metavar="B", help="examples a step and worker")
    add("--lr", type=float, metavar="LR", help="learning rate of the inner optimizer")
    add("--optimizer", choices=("sgd", "momentum", "adamw"), help="the inner optimizer")
    add("--weight-decay", type=float, metavar="X", help="of the inner optimizer")
    add("--schedule", choices=("constant", "cosine"), help="of the learning rate")
    add("--eval-every", type=int, metavar="N", help="steps between evaluations")
    add("--checkpoint-every", type=int, metavar="N", help="steps between checkpoints (default: 500)")
    add("--seed", type=int, metavar="S", help="of everything random (default: 0)")
    add("--delay", type=int, metavar="D", help="steps that are computed while a round travels (default: 0)")
    add("--mix", type=float, metavar="A", help="share of a worker's own weights when a round lands (default: what "
        "the round found is added to them)")  # fmt: skip
    add("--fragments", type=int, metavar="K", help="synchronize the model in K parts, one at a time (default: 1)")
    add("--codec", metavar="SPEC", help=f"how vectors are coded when sent: {specs.CODECS}")
    add("--fast-sums", action="store_true", default=None, help="let the network choose the order of sums: "
        "faster with real processes, no longer bitwise equal to sim")  # fmt: skip
    add("--until-accuracy", type=float, metavar="A", help="end at the first evaluation with this test accuracy")
    add("--data", metavar="DIR", help="data folder (default: SWARMSTEP_DATA, or ./data)")
    add("--out", metavar="DIR", help="folder for the run's files (default: a new one below runs/)")
    add("--no-files", action="store_true", help="write no files at all")
    add("--resume", metavar="DIR", help="go on with the run in DIR, with its settings")
    add("--stop-at", type=int, metavar="STEP", help="stop there with a checkpoint, as on Ctrl-C")
    add("--elastic", choices=config.ELASTIC, help="workers may be lost and come back: local, the others go on in "
        "the same processes; torchft, so too, with torchft's lighthouse; torchrun, all start "
        "again from the last checkpoint")  # fmt: skip
    add("--listen", metavar="HOST:PORT", help="with --elastic local or torchft: let others join at "
        "this address of this machine; needs a secret (docs/security.md)")  # fmt: skip
    add("--join", metavar="HOST:PORT", help="give workers to the run that listens there, at any "
        "time, with its settings; --data, --workers and --out are this machine's own")  # fmt: skip
    add("--pace", type=float, default=0.0, metavar="SECONDS", help="what a local step takes at least (default: 0)")
    add("--silence", type=float, metavar="SECONDS", help="a worker without a sign of life for so long is lost "
        "(default: 30; with --elastic local or torchft 5)")  # fmt: skip
    add("--patience", type=float, default=1800.0, metavar="SECONDS", help="how long to wait for a worker that is "
        "alive (default: 1800)")  # fmt: skip
    add("--json", action="store_true", help="print one JSON object as the last line")


def defaults_table() -> str:
    """Return what the workloads fill in where nothing is given."""
    lines = ["defaults:"]
    for name, (defaults, models) in BUILT_IN.items():
        values = ", ".join(f"{k.replace('_', '-')} {v}" for k, v in dataclasses.asdict(defaults).items())
        lines.append(f"  {name}: model {models[0]} (of {', '.join(models)}), {values}")
    return "\n".join(lines)


def run(args: argparse.Namespace, given: list[str]) -> int:
    """Train, as one of the workers or as who starts them, and print the summary; return the exit code."""
    from swarmstep.train.run_folder import plain
    from swarmstep.train.session import Session

    stop = Stop()
    call = Invocation(**{f.name: getattr(args, f.name) for f in dataclasses.fields(Invocation)})
    session = Session(settings(args), call, stop.requested)
    if session.is_worker:
        with stop:
            summary = session.work()
    elif session.starts_processes:
        return session.launch(given)
    else:
        with stop:
            summary = session.simulate()
    if summary is not None:
        print(json.dumps(plain(summary)) if args.json else _in_words(summary))
    return 0


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a Config that the command line gives."""
    names = [f.name for f in dataclasses.fields(Config)]
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if "settings" in given:
        pairs = [text.partition("=") for text in given["settings"]]
        for text, (name, equals, _) in zip(given["settings"], pairs, strict=True):
            if not (name and equals):
                raise UsageError(f"--set: expected NAME=VALUE, found {text!r}")
        given["settings"] = {name: value for name, _, value in pairs}
    if args.every is not None and args.when is not None:
        raise UsageError("--every and --when: give one of them")
    return given


class Stop:
    """Turns the first interrupt into a request to stop at a step that suits all; the second ends at once."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        """Return whether somebody asked to stop, or whoever started this process has ended."""
        return self._requested or orphaned()

    def _handle(self, number: int, _frame: Any) -> None:
        if self._requested:
            raise KeyboardInterrupt
        self._requested = True

    def __enter__(self) -> None:
        self._previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)  # the process that started us held them back

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def orphaned() -> bool:
    """Return whether the process that started this worker has ended."""
    return os.environ.get("SWARMSTEP_LAUNCHER", str(os.getppid())) != str(os.getppid())


def _in_words(summary: dict[str, Any]) -> str:
    from swarmstep.train.progress import in_bytes

    accuracy = summary["test_accuracy"]
    judged = f"test accuracy {accuracy:.4f}, " if accuracy == accuracy else ""  # NaN: has no meaning here
    sent, received = summary["bytes_sent_per_worker"], summary["bytes_received_per_worker"]
    lines = [
        f"{judged}test loss {summary['test_loss']:.4f}, training loss {summary['train_loss']:.4f}",
        f"{summary['rounds']} rounds; each worker sent {in_bytes(sent)} and received {in_bytes(received)}",
        f"{summary['seconds']:.1f} s, {summary['sync_seconds']:.1f} s of them synchronizing",
    ]
    lines += [f"distrusted: rank {d['rank']} since step {d['since']}: {d['why']}" for d in summary["distrusted"]]
    return "\n".join([*lines, *([f"files in {summary['out']}"] if summary["out"] else [])])
