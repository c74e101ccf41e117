"""What is compared: a method with its settings and options in one word, and what tuning tries for it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from swarmstep.errors import UsageError
from swarmstep.strategies import STRATEGIES
from swarmstep.train.config import BASELINES, Config

SPEC = (
    "NAME, or NAME+setting=value+..., where codec, delay, mix, fragments and when are those of `swarmstep train`"
)
OPTIONS = ("codec", "delay", "mix", "fragments", "when")

# What is tried besides the defaults, at the learning rate that was best with them; in this order. A method that is
# not here, or has fewer, spends the same number of trials on more learning rates.
ALTERNATIVES: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "bmuf": ({"nesterov": "true"}, {"momentum": "0.5"}),
    "diloco": ({"momentum": "0.5"}, {"lr": "1.0"}),
    "easgd": ({"beta": "0.5"}, {"beta": "0.99"}),
    "fedpso": ({"social": "0.7"}, {"inertia": "0.0"}),
    "hierarchical": ({"outer_every": "2"},),
    "noloco": ({"momentum": "0.2"}, {"lr": "1.0"}),
    "papa": ({"a": "0.9"}, {"a": "0.0"}),
    "pso-ps": ({"social": "1.0"}, {"inertia": "0.0"}),
    "slowmo": ({"momentum": "0.2"}, {"momentum": "0.8"}),
    "swarm": ({"inertia": "0.5"}, {"social": "1.0"}),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its name, the settings of the strategy, and options of the runtime."""

    spec: str
    name: str
    settings: Mapping[str, str]
    options: Mapping[str, Any]

    def config(self, **fields: Any) -> Config:
        """Return the config of a run with this method; not resolved."""
        settings = {**self.settings, **fields.pop("settings", {})}
        return Config(strategy=self.name, settings=settings, **self.options, **fields)

    def alternatives(self) -> list[Mapping[str, str]]:
        """Return the settings that tuning tries, without those that the user has set."""
        return [tried for tried in ALTERNATIVES.get(self.name, ()) if not set(tried) & set(self.settings)]


def parse(spec: str) -> Method:
    """Return the method that a text such as ``pso-ps+best=historical`` or ``swarm+codec=int8+delay=8`` names.

    Raises:
        UsageError: the form is wrong; unknown settings and values are found when a Config is resolved.
    """
    name, *parts = spec.strip().split("+")
    known = sorted({*STRATEGIES, *BASELINES})
    if name not in known:
        raise UsageError(f"unknown strategy {name!r}; expected one of {', '.join(known)}")
    settings: dict[str, str] = {}
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in settings | options:
            raise UsageError(f"strategy {spec!r}: unexpected {part!r}; expected {SPEC}")
        if key in OPTIONS:
            options[key] = _option(spec, key, value)
        else:
            settings[key] = value
    return Method(spec.strip(), name, settings, options)


def parse_all(specs: str) -> list[Method]:
    """Return the methods that a list such as ``swarm,diloco+lr=1.0`` names, each once.

    A comma followed by a digit belongs to a value, as in ``when=qsr:4,0.1``.

    Raises:
        UsageError: one of them is wrong.
    """
    return [parse(spec) for spec in dict.fromkeys(re.split(r",(?!\d)", specs))]


def _option(spec: str, key: str, value: str) -> Any:
    kinds: dict[str, type] = {"delay": int, "fragments": int, "mix": float}
    try:
        return kinds.get(key, str)(value)
    except ValueError:
        raise UsageError(f"strategy {spec!r}: {key}: expected a number, found {value!r}") from None
