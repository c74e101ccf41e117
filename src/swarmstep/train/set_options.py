"""What --set says: settings of a method by name, as text."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from swarmstep.errors import UsageError


def setting_types(kind: type) -> dict[str, Any]:
    """Return name -> type of what --set can set on a dataclass of settings, a strategy say."""
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if f.name != "when"}


def parse_settings(kind: type, given: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings that were given, as values of their types.

    Raises:
        UsageError: one is unknown, or has another type.
    """
    known = setting_types(kind)
    for name in given:
        if name not in known:
            valid = ", ".join(known) or "none"
            raise UsageError(f"unknown setting {name!r} of {kind.__name__}; expected one of {valid}")
    return {name: _value(name, text, known[name]) for name, text in given.items()}


def _value(name: str, text: str, kind: Any) -> Any:
    """Return `text` as a value of type `kind`: str, int, float, bool, or one of them or None."""
    if isinstance(kind, types.UnionType):
        if text.lower() == "none":
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{name}: expected true or false, found {text!r}")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{name}: expected {kind.__name__}, found {text!r}") from None
