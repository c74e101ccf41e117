"""The command ``swarmstep``: its commands together, and how a call of it ends."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.main
from typer.core import TyperCommand

from swarmstep import __version__
from swarmstep.cli.exit_codes import EXIT_CODES
from swarmstep.console import say
from swarmstep.errors import Interrupted, SwarmstepError, UsageError
from swarmstep.launch.stopping import orphaned

NAME = "swarmstep"
HELP = ["-h", "--help"]
COMPLETION = "_SWARMSTEP_COMPLETE"  # the environment variable by which a shell asks for completions

# Each is a module beside this one, imported when the command is used: `swarmstep --help` imports none of them.
COMMANDS = {
    "train": ("Training", "Train a model with W workers, each on its own share of the data."),
    "run": ("Training", "Run a Python program of your own as W processes, and start again those that die."),
    "watch": ("Training", "Show how far a run is, while it goes on elsewhere or once it has ended."),
    "plan": ("Comparing", "Say how rarely to synchronize on your network, before you train there."),
    "sample": ("Training", "Let a trained text model write."),
    "compare": ("Comparing", "Find out which method reaches the accuracy you want soonest, on your network."),
    "report": ("Comparing", "Make a page or a table of runs and comparisons."),
    "bench": ("Measuring", "Measure what a round costs on this machine."),
    "chaos": ("Measuring", "Train while faults strike the workers, and say what was lost."),
    "doctor": ("Measuring", "Show what this machine has, and try out whether real processes can train on it."),
    "strategies": ("Methods", "List the methods, or show one of them with its settings."),
    "cite": ("Methods", "Print the BibTeX entry of a method's paper."),
}

app = typer.Typer(
    help="Train one PyTorch model with many workers that communicate rarely.",
    epilog=f"\n{EXIT_CODES}",  # the empty line keeps the indent
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP},
)


@functools.cache
def load(name: str) -> Any:
    """Return one of COMMANDS with its options, as Typer builds it from its module."""
    return _tidied(typer.main.get_command(import_module(f"swarmstep.cli.{name}").app))


class LazyCommand(TyperCommand):
    """Stands for a command in the list of all, until it is used."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the words of the command by the options of the command itself."""
        return load(str(self.name)).make_context(info_name, args, parent, **extra)


for _name, (_panel, _about) in COMMANDS.items():
    app.command(_name, cls=LazyCommand, help=_about, rich_help_panel=_panel)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Take the options that stand before the command."""


def _tidied(command: Any) -> Any:
    """Return a command whose help fits any terminal, and shows no type for options that take no value."""
    for one in (command, *getattr(command, "commands", {}).values()):
        one.help = _unwrapped(one.help or "")
        for parameter in one.get_params(typer.Context(one, help_option_names=HELP)):
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
    return command


def _unwrapped(text: str) -> str:
    """Return a text with each paragraph on one line; indented lines stay lines."""
    return re.sub(r"(?<!\n)\n(?![\n ])", " ", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (default: those of the process) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # an error is one line
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    try:
        code = _run(words)
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


def _run(words: list[str]) -> int:
    """Parse a command line and do what it says.

    Typer's own `main` would end the process, and print errors in its own way.
    """
    built = _tidied(typer.main.get_command(app))
    if COMPLETION in os.environ:
        return built.main(words, NAME, COMPLETION)
    try:
        with built.make_context(NAME, words, obj=words) as context:
            return built.invoke(context)
    except typer.Exit as done:  # after --help or --version
        return done.exit_code
    except typer.TyperException as error:
        raise UsageError(f"{_in_words(error)}; {_path(built, words)} --help shows what is valid") from None


def _in_words(error: typer.TyperException) -> str:
    """Return what is wrong with a command line, such as "--steps: expected a whole number, found 'x'"."""
    message = " ".join(error.format_message().split()).rstrip(".")
    message = re.sub(r"^Invalid value for '(.+?)': (Value error, )?", r"\1: ", message)
    return message[0].lower() + message[1:]


def _path(one: Any, words: Sequence[str]) -> str:
    """Return the command that a command line names, such as "swarmstep bench wire"."""
    path = [NAME]
    for word in words:
        one = getattr(one, "commands", {}).get(word)
        if one is None:
            break
        one = load(word) if isinstance(one, LazyCommand) else one
        path.append(word)
    return " ".join(path)


def _unexpected(error: BaseException) -> int:
    """Say in one line what went wrong, in whose code, and where."""
    if os.environ.get("SWARMSTEP_TRACEBACK"):
        traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)
    workloads = {
        getattr(module, "__file__", "")
        for name, module in sys.modules.items()
        if name.startswith("swarmstep_workload_")
    }
    own = [frame for frame in frames if frame.filename in workloads]
    if isinstance(error, SystemExit) and not own:
        raise error  # after a completion
    frame = (own or list(frames))[-1]
    first = (str(error).strip().split("\n") or [""])[0]
    where = f"{frame.filename}, line {frame.lineno}"
    return _fail(f"{type(error).__name__}: {first} ({where}; SWARMSTEP_TRACEBACK=1 shows more)", 1)


def _fail(message: str, code: int) -> int:
    """Say why it ends; a worker leaves that to the process that started it, which says it once for all."""
    file = os.environ.get("SWARMSTEP_SAYS")
    if file and not orphaned():
        with contextlib.suppress(OSError):
            Path(file).write_text(f"{NAME}: {message}\n")
            return code
    if code != Interrupted.exit_code or os.environ.get("RANK", "0") == "0":
        say(message)
    return code
