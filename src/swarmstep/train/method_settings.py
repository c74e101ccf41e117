"""What `--set` takes for each method, as its class declares and describes it."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any, NamedTuple

from swarmstep.strategies import STRATEGIES
from swarmstep.train.asynchronous.methods import SETTINGS
from swarmstep.train.layerwise import options as layerwise
from swarmstep.train.set_options import setting_types


class MethodSetting(NamedTuple):
    """One setting of a method."""

    name: str
    type: str
    default: Any
    about: str


def method_settings(name: str) -> list[MethodSetting]:
    """Return the settings of the method with this name; none of one that is not a strategy."""
    kind: type[Any] | None = STRATEGIES.get(name) or SETTINGS.get(name) or layerwise.SETTINGS.get(name)
    if kind is None:
        return []
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    return [
        MethodSetting(setting, _type_name(hint), defaults[setting], _about(kind, setting))
        for setting, hint in setting_types(kind).items()
    ]


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint)


def _about(kind: type, setting: str) -> str:
    """Return what the docstring says of an argument; that of a base class where it says "as in `...`"."""
    entry = re.compile(rf"^    {setting}: (.+(?:\n {{5,}}.+)*)", re.MULTILINE)
    for cls in kind.__mro__:
        found = entry.search(inspect.cleandoc(cls.__doc__ or ""))
        if found and not found[1].startswith("as in `"):
            return " ".join(found[1].split())
    return ""
