"""The command ``swarmstep``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from swarmstep.errors import Interrupted, SwarmstepError, UsageError

EXIT_CODES = """exit codes:
  0    done
  1    an error in swarmstep or in a workload of your own (SWARMSTEP_TRACEBACK=1 shows where)
  2    a wrong option or value
  3    data missing, foreign or damaged
  4    a run folder or checkpoint cannot be used
  5    a worker was lost, or the workers do not agree
  6    a worker's weights are not finite
  130  stopped on request; a checkpoint was written"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process) and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # what goes wrong is said in one line
    warnings.showwarning = lambda message, *_: _say(f"warning: {message}")
    try:
        args = _parser().parse_args(given)
        code = args.command(args, given)
        if sys.stdout:
            sys.stdout.flush()
        return code
    except SwarmstepError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("ended at once on request; nothing was saved since the last checkpoint", 130)
    except BrokenPipeError:  # the reader of our output has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, SystemExit) as error:
        return _unexpected(error)


def _unexpected(error: BaseException) -> int:
    """Say in one line what went wrong in whose code, and where."""
    if os.environ.get("SWARMSTEP_TRACEBACK"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    own = {getattr(m, "__file__", "") for name, m in sys.modules.items() if name.startswith("swarmstep_workload_")}
    theirs = [frame for frame in frames if frame.filename in own]
    if isinstance(error, SystemExit) and not theirs:
        raise error  # --help and --version
    frame = (theirs or list(frames))[-1]
    first = (str(error).strip().split("\n") or [""])[0]
    where = f"{frame.filename}, line {frame.lineno}"
    return _fail(f"{type(error).__name__}: {first} ({where}; SWARMSTEP_TRACEBACK=1 shows more)", 1)


def _fail(message: str, code: int) -> int:
    """Say why it ends; a worker leaves that to the process that started it, which says it once for all."""
    says = os.environ.get("SWARMSTEP_SAYS")
    if says and not _orphaned():
        with contextlib.suppress(OSError):
            Path(says).write_text(f"swarmstep: {message}\n")
            return code
    if code != Interrupted.exit_code or os.environ.get("RANK", "0") == "0":
        _say(message)
    return code


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"swarmstep: {message}", file=sys.stderr, flush=True)


def _orphaned() -> bool:
    """Return whether the process that started this worker has ended."""
    return os.environ.get("SWARMSTEP_LAUNCHER", str(os.getppid())) != str(os.getppid())


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; {self.prog} --help shows what is valid")


def _parser() -> argparse.ArgumentParser:
    from swarmstep import __version__

    parser = _Parser(
        prog="swarmstep",
        description="Train one model with many workers that talk rarely.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"swarmstep {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_train(commands)
    listing = commands.add_parser("strategies", help="list the methods")
    listing.add_argument("--json", action="store_true", help="as one JSON array")
    listing.set_defaults(command=_strategies)
    cite = commands.add_parser("cite", help="print a method's paper as BibTeX")
    cite.add_argument("name", metavar="NAME", help="as `swarmstep strategies` lists it")
    cite.set_defaults(command=_cite)
    doctor = commands.add_parser("doctor", help="say what this machine can do")
    doctor.add_argument("--data", metavar="DIR", help="data folder (default: SWARMSTEP_DATA, or ./data)")
    doctor.set_defaults(command=_doctor)
    _add_bench(commands)
    _add_compare(commands)
    return parser


def _add_train(commands: Any) -> None:
    from swarmstep.bench import config, faults, sharding
    from swarmstep.comm import codecs

    train = commands.add_parser(
        "train",
        help="train a network with W workers",
        description="Train one network with W workers, each on its own shard, and say how well and at what cost.",
        epilog=f"{_defaults_table()}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = train.add_argument
    add("workload", nargs="?", metavar="WORKLOAD", help="digits, mnist, cifar10, or path/to/file.py:workload")
    add("--strategy", metavar="NAME", help="how the workers synchronize (default: swarm)")
    add("--set", metavar="NAME=VALUE", action="append", dest="settings", help="a setting of the strategy")
    add("--every", type=int, metavar="N", help="steps between rounds")
    add("--when", metavar="SPEC", help=f"in place of --every: {config.WHENS}")
    add("--workers", type=int, metavar="W", help="how many workers (default: 4)")
    add("--backend", choices=config.BACKENDS, help="sim: in this process (default); gloo, nccl: real processes")
    add("--shards", metavar="SPEC", help=f"who holds what (default: iid): {sharding.SPECS}")
    add("--fault", metavar="SPEC", help=f"what the last K ranks do wrong: {faults.SPECS}")
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
    add("--codec", metavar="SPEC", help=f"how vectors are coded when sent: {codecs.SPECS}")
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
    train.set_defaults(command=_train)


def _add_bench(commands: Any) -> None:
    from swarmstep.bench.measure.command import add_options

    about = "measure what a round costs on this machine"
    bench = commands.add_parser("bench", help=about, description=f"{about.capitalize()}, as ratios in one run.")
    add_options(bench)
    bench.set_defaults(command=_bench)


def _add_compare(commands: Any) -> None:
    from swarmstep.bench.compare import command
    from swarmstep.bench.report import command as report_command

    about = "find out which method reaches the accuracy wanted soonest"
    compare = commands.add_parser("compare", help=about, description=command.DESCRIPTION)
    command.add_options(compare)
    compare.set_defaults(command=_compare)
    report = commands.add_parser("report", help="make a page of comparisons")
    report_command.add_options(report)
    report.set_defaults(command=_report)


def _defaults_table() -> str:
    import dataclasses

    from swarmstep.bench.workloads import DEFAULTS, MODELS

    lines = ["defaults:"]
    for name, defaults in DEFAULTS.items():
        values = ", ".join(f"{k.replace('_', '-')} {v}" for k, v in dataclasses.asdict(defaults).items())
        lines.append(f"  {name}: model {MODELS[name][0]} (of {', '.join(MODELS[name])}), {values}")
    return "\n".join(lines)


def _train(args: argparse.Namespace, given: list[str]) -> int:
    from swarmstep.bench.record import plain
    from swarmstep.bench.session import Session

    stop = _Stop()
    session = Session(_settings(args), args, stop.requested)
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


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a Config that the command line gives."""
    import dataclasses

    from swarmstep.bench.config import Config

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
    for name, low in (("silence", 2.0), ("patience", 1.0), ("pace", 0.0)):  # a sign of life comes each half second
        found = getattr(args, name)
        if found is not None and not low <= found <= 1e6:
            raise UsageError(f"--{name}: expected {low:g} to 1e6 seconds, found {found:g}")
    return given


class _Stop:
    """Turns the first interrupt into a request to stop at a step that suits all; the second ends at once."""

    def __init__(self) -> None:
        self._requested = False

    def requested(self) -> bool:
        return self._requested or _orphaned()

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


def _in_words(summary: dict[str, Any]) -> str:
    from swarmstep.bench.view import in_bytes

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


def _strategies(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.bench.catalogue import rows, table

    print(json.dumps(rows()) if args.json else table())
    return 0


def _cite(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.bench.catalogue import bibtex

    print(bibtex(args.name))
    return 0


def _doctor(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.bench.doctor import examine

    return examine(Path(args.data) if args.data else None)


def _bench(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.bench.measure.command import run

    return run(args)


def _compare(args: argparse.Namespace, given: list[str]) -> int:
    from swarmstep.bench.compare.command import run

    return run(args, given)


def _report(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.bench.report.command import run

    return run(args)
