"""Options of commands, made from the fields of the dataclasses that hold their values."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

import typer

from swarmstep.cards import CARDS
from swarmstep.cli.text import literal
from swarmstep.errors import UsageError
from swarmstep.workloads.defaults import BUILT_IN

F = TypeVar("F", bound=Callable[..., object])

PATHS = ("DIR", "WORKLOAD")  # by what the help shows
COMPLETIONS: Mapping[str, Iterable[str]] = {"strategy": CARDS, "workload": BUILT_IN}  # by the name of the field


def options_of(*kinds: type, groups: Sequence[str] = ()) -> Callable[[F], F]:
    """Return a decorator that gives a command an option for each field of these dataclasses.

    The command is called with their values as keyword arguments. The metadata of a field is what the help shows:
    "help", "metavar" and "group", as `swarmstep.settings` makes it. A field without a default is an argument, and
    the field `settings` is the option --set. A parameter that the command declares itself stays as it is.

    Args:
        kinds: the dataclasses.
        groups: of their options, in the order of the help.
    """

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        own = {
            name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in signature.parameters.items()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        }
        hints = {name: hint for kind in kinds for name, hint in typing.get_type_hints(kind).items()}
        fields = [field for kind in kinds for field in dataclasses.fields(kind) if field.name not in own]
        if groups:
            fields.sort(key=lambda field: groups.index(field.metadata["group"]))
        made = [_parameter(field, _without_none(hints[field.name])) for field in fields]
        command.__dict__["__signature__"] = signature.replace(parameters=[*own.values(), *made])
        return command

    return decorate


def _without_none(hint: Any) -> Any:
    """Return `int` for `int | None`."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _parameter(field: dataclasses.Field[Any], kind: Any) -> inspect.Parameter:
    """Return the parameter of a command for a field of this type; that of a collection may be repeated."""
    repeated = typing.get_origin(kind) not in (None, Literal)
    required = field.default is dataclasses.MISSING and not repeated
    about: dict[str, Any] = {
        "help": literal(_help(field, kind)),
        "metavar": field.metadata["metavar"] or ("CHOICE" if typing.get_origin(kind) is Literal else None),
        "parser": path if field.metadata["metavar"] in PATHS else _parser(kind),
        "autocompletion": completion(COMPLETIONS[field.name]) if field.name in COMPLETIONS else None,
    }
    if required:
        info = typer.Argument(**about)
    else:
        name = "set" if field.name == "settings" else field.name.replace("_", "-")
        info = typer.Option(f"--{name}", rich_help_panel=field.metadata["group"], **about)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[list[str] if repeated else kind, info],
        default=inspect.Parameter.empty if required else [] if repeated else field.default,
    )


def _help(field: dataclasses.Field[Any], kind: Any) -> str:
    """Return what the help says of a field, with its choices: in a column of their own they leave no room."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    about: str = field.metadata["help"]
    return about if all(choice in about for choice in choices) else f"{about}: {', '.join(choices)}"


def completion(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what gives a shell those of the values that begin as the word on its command line does."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


def _parser(kind: Any) -> Callable[[str], Any] | None:
    """Return what reads a value of this type, and says what was expected; None: any text will do."""
    if typing.get_origin(kind) is Literal:
        return one_of(kind)
    return {int: whole_number, float: number}.get(kind)


def path(text: str) -> str:
    """Return a path with the home folder in place of ~, which shells leave in --out=~/runs."""
    return os.path.expanduser(text)


def whole_number(text: str) -> int:
    """Return the number that a text such as 10000000, 10_000_000 or 1e7 stands for."""
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError, OverflowError):
        value = float(text)
        if value == int(value):
            return int(value)
    raise ValueError(f"expected a whole number, found {text!r}")


def number(text: str) -> float:
    """Return the number that a text stands for."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"expected a number, found {text!r}") from None


def one_of(choices: Any) -> Callable[[str], str]:
    """Return what reads one of the strings of a Literal."""

    def choice(text: str) -> str:
        if text not in typing.get_args(choices):
            raise ValueError(f"expected one of {', '.join(typing.get_args(choices))}, found {text!r}")
        return text

    return choice


def given(context: typer.Context, kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass that the command line gives, without those left at their default.

    Raises:
        UsageError: a value of --set is not NAME=VALUE.
    """
    sources = {field.name: context.get_parameter_source(field.name) for field in dataclasses.fields(kind)}
    values = {
        name: context.params[name] for name, source in sources.items() if source and source.name == "COMMANDLINE"
    }
    if "settings" in values:
        values["settings"] = _pairs(values["settings"])
    return values


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UsageError(f"--set: expected NAME=VALUE, found {text!r}")
        pairs[name] = value
    return pairs


def fields_of(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a command that are fields of a dataclass."""
    return {field.name: values[field.name] for field in dataclasses.fields(kind)}
