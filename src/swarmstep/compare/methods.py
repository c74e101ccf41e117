"""A method with its settings and options in one specification, and the settings that tuning tries."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from swarmstep.errors import UsageError
from swarmstep.spec_help import METHODS
from swarmstep.strategies import STRATEGIES
from swarmstep.train.config import ASYNCHRONOUS, BASELINES, Config

OPTIONS = (
    "codec",
    "delay",
    "eager",
    "mix",
    "fragments",
    "when",
    "balance",
    "objective",
    "sampling",
    "sparse",
    "regularizer",
)

# Settings tried besides the defaults, in this order, at the learning rate that was best with the defaults. Methods
# with fewer settings than trials spend the rest on more learning rates.
ALTERNATIVES: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "bmuf": ({"nesterov": "true"}, {"momentum": "0.5"}),
    "diloco": ({"momentum": "0.5"}, {"lr": "1.0"}),
    "easgd": ({"beta": "0.5"}, {"beta": "0.99"}),
    "edit": ({"momentum": "0.5"}, {"lr": "1.0"}),
    "fedpso": ({"social": "0.7"}, {"inertia": "0.0"}),
    "gasloc": ({"graph": "exponential"}, {"momentum": "0.3"}),
    "hierarchical": ({"outer_every": "2"},),
    "noloco": ({"momentum": "0.2"}, {"lr": "1.0"}),
    "papa": ({"a": "0.9"}, {"a": "0.0"}),
    "pso-ps": ({"social": "1.0"}, {"inertia": "0.0"}),
    "slowmo": ({"momentum": "0.2"}, {"momentum": "0.8"}),
    "sparta": ({"stride": "50"}, {"stride": "1000"}),
    "sparta-diloco": ({"momentum": "0.5"}, {"lr": "1.0"}),
    "swarm": ({"inertia": "0.5"}, {"social": "1.0"}),
}


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its name, the settings of its strategy, and options of the runtime."""

    spec: str
    name: str
    settings: Mapping[str, str]
    options: Mapping[str, Any]

    def config(self, **fields: Any) -> Config:
        """Return the unresolved config of a run with this method."""
        settings = {**self.settings, **fields.pop("settings", {})}
        return Config(strategy=self.name, settings=settings, **{**fields, **self.options})

    def alternatives(self) -> list[Mapping[str, str]]:
        """Return the settings that tuning tries, except those that the user has set."""
        return [trial for trial in ALTERNATIVES.get(self.name, ()) if not set(trial) & set(self.settings)]


def parse(spec: str) -> Method:
    """Return the method of a specification such as ``pso-ps+best=historical`` or ``swarm+codec=int8``.

    Raises:
        UsageError: the specification is malformed; unknown settings are found when a Config is resolved.
    """
    name, *parts = spec.strip().split("+")
    known = sorted({*STRATEGIES, *BASELINES, *ASYNCHRONOUS})
    if name not in known:
        raise UsageError(f"unknown strategy {name!r}; expected one of {', '.join(known)}")
    settings: dict[str, str] = {}
    options: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not (key and equals and value) or key in settings | options:
            raise UsageError(f"strategy {spec!r}: unexpected {part!r}; expected {METHODS}")
        if key in OPTIONS:
            options[key] = _option(spec, key, value)
        else:
            settings[key] = value
    return Method(spec.strip(), name, settings, options)


def parse_all(specs: str) -> list[Method]:
    """Return the methods of a list such as ``swarm,diloco+lr=1.0``, each once.

    A comma followed by a digit belongs to a value, as in ``when=qsr:4,0.1``.

    Raises:
        UsageError: one of them is malformed.
    """
    return [parse(spec) for spec in dict.fromkeys(re.split(r",(?!\d)", specs))]


def _option(spec: str, key: str, value: str) -> Any:
    kinds: dict[str, type] = {"delay": int, "fragments": int, "mix": float}
    try:
        return {"true": True, "false": False}[value] if key == "eager" else kinds.get(key, str)(value)
    except (KeyError, ValueError):
        kind = "true or false" if key == "eager" else "a number"
        raise UsageError(f"strategy {spec!r}: {key}: expected {kind}, found {value!r}") from None
