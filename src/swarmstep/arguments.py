"""One check of what a call is given, where a wrong type would fail far from the call, or not at all."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any

from typing_extensions import Self

from swarmstep.errors import UsageError


class Checked:
    """Base of dataclasses whose arguments are compared with the types of the fields before they are used."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Return the object, not yet filled in; UsageError where an argument is of another type than its field."""
        hints = _hints(cls)
        positional = [name for name in inspect.signature(cls).parameters if name in hints]
        for name, value in {**dict(zip(positional, args, strict=False)), **kwargs}.items():
            if name in hints:
                check_type(f"{cls.__name__}: {name}", value, hints[name])
        return super().__new__(cls)


def check_type(what: str, value: object, kind: Any) -> None:
    """Raise UsageError unless `value` is of a kind.

    Args:
        what: is given, for the message: "Synchronizer: model", say.
        value: that was given.
        kind: a class, or another type that can stand in an annotation; what is within its brackets counts only in
            a union.
    """
    if not _fits(value, kind):
        raise UsageError(f"{what}: expected {_spell(kind)}, found {_describe(value)}")


@functools.cache
def _hints(cls: type) -> Mapping[str, Any]:
    try:
        return typing.get_type_hints(cls)
    except NameError:  # of a class of the user's own, with types that are imported for a type checker only
        return {}


def _fits(value: object, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if origin is typing.Literal:
        return isinstance(value, type(typing.get_args(kind)[0]))
    if origin is collections.abc.Callable:
        return callable(value) and not isinstance(value, type)
    number = {int: numbers.Integral, float: numbers.Real}.get(origin, origin)
    return isinstance(value, number) if isinstance(number, type) else True


def _spell(kind: Any) -> str:
    """Return how people call a type: "Codec or None"."""
    origin = typing.get_origin(kind) or kind
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(part) for part in typing.get_args(kind))
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(kind)))
    names = {
        collections.abc.Callable: "a function",
        types.NoneType: "None",
        float: "a number",
        int: "a whole number",
    }
    return names.get(origin) or f"an instance of {origin.__name__}"


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}; give an instance, such as {value.__name__}()"
    text = repr(value)
    return "None" if value is None else f"{text if len(text) < 60 else 'one'} of type {type(value).__name__}"
