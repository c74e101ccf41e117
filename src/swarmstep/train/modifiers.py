"""The modifiers of a run's model: from the texts of --sparse and --regularizer."""

from __future__ import annotations

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.modifier import Modifier, Modifiers
from swarmstep.regularizers import Dropout, LocalDrop
from swarmstep.sparse import NM
from swarmstep.train.config import Config
from swarmstep.train.set_options import parse_settings


def build_modifiers(config: Config) -> Modifiers:
    """Return what a config does to the model, in the order in which it is done.

    Raises:
        UsageError: an unknown form, or a number out of its range.
    """
    parts: list[Modifier] = []
    if config.regularizer is not None:
        parts.append(_regularizer(config.regularizer))
    if config.sparse is not None:
        if acting := [part for part in parts if part.acts_on_steps]:
            raise UsageError(f"--sparse: does not go with {acting[0]}, which changes the weights between steps")
        parts.append(_sparse(config.sparse))
    return Modifiers(*parts)


def _sparse(spec: str) -> Modifier:
    ratio, _, decay = spec.partition(",")
    n, _, m = ratio.partition(":")
    try:
        return NM(int(n), int(m), float(decay) if decay else NM.decay)
    except ValueError:
        raise UsageError(f"unknown sparsity {spec!r}; expected {spec_help.SPARSE}") from None


def _regularizer(spec: str) -> Modifier:
    name, _, rest = spec.partition(":")
    try:
        if name == "dropout":
            return Dropout(float(rest))
        if name == "localdrop":
            settings = dict(part.split("=", 1) for part in rest.split(",") if rest)
            return LocalDrop(**parse_settings(LocalDrop, settings))
    except ValueError:
        pass
    raise UsageError(f"unknown regularizer {spec!r}; expected {spec_help.REGULARIZERS}")
