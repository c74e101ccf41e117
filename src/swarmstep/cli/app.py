"""The command ``swarmstep``."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
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
    from swarmstep.cli.train import orphaned

    says = os.environ.get("SWARMSTEP_SAYS")
    if says and not orphaned():
        with contextlib.suppress(OSError):
            Path(says).write_text(f"swarmstep: {message}\n")
            return code
    if code != Interrupted.exit_code or os.environ.get("RANK", "0") == "0":
        _say(message)
    return code


def _say(message: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        print(f"swarmstep: {message}", file=sys.stderr, flush=True)


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
    _add_run(commands)
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
    _add_chaos(commands)
    return parser


def _add_train(commands: Any) -> None:
    from swarmstep.cli import train

    parser = commands.add_parser(
        "train",
        help="train a network with W workers",
        description=train.DESCRIPTION,
        epilog=f"{train.defaults_table()}\n\n{EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_options(parser)
    parser.set_defaults(command=train.run)


def _add_run(commands: Any) -> None:
    from swarmstep.cli import run

    about = "run a program of your own as workers that may be lost and come back"
    parser = commands.add_parser("run", help=about, description=run.DESCRIPTION)
    run.add_options(parser)
    parser.set_defaults(command=_run)


def _add_chaos(commands: Any) -> None:
    from swarmstep.cli import chaos as command

    chaos = commands.add_parser(
        "chaos",
        help="train in a storm of faults, and say what was lost",
        description=command.DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_options(chaos)
    chaos.set_defaults(command=_chaos)


def _add_bench(commands: Any) -> None:
    from swarmstep.cli.bench import add_options

    about = "measure what a round costs on this machine"
    bench = commands.add_parser("bench", help=about, description=f"{about.capitalize()}, as ratios in one run.")
    add_options(bench)
    bench.set_defaults(command=_bench)


def _add_compare(commands: Any) -> None:
    from swarmstep.cli import compare as command
    from swarmstep.cli import report as report_command

    about = "find out which method reaches the accuracy wanted soonest"
    compare = commands.add_parser("compare", help=about, description=command.DESCRIPTION)
    command.add_options(compare)
    compare.set_defaults(command=_compare)
    report = commands.add_parser("report", help="make a page of comparisons")
    report_command.add_options(report)
    report.set_defaults(command=_report)


def _strategies(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.catalogue import rows, table

    print(json.dumps(rows()) if args.json else table())
    return 0


def _cite(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.catalogue import bibtex

    print(bibtex(args.name))
    return 0


def _doctor(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.doctor import examine

    return examine(Path(args.data) if args.data else None)


def _bench(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.bench import run

    return run(args)


def _compare(args: argparse.Namespace, given: list[str]) -> int:
    from swarmstep.cli.compare import run

    return run(args, given)


def _report(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.report import run

    return run(args)


def _run(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.run import run

    return run(args)


def _chaos(args: argparse.Namespace, _given: list[str]) -> int:
    from swarmstep.cli.chaos import run

    return run(args)
