"""The modifiers of a run's model: from the texts of --sparse and --regularizer."""

from __future__ import annotations

from swarmstep import spec_help
from swarmstep.errors import UsageError
from swarmstep.modifier import Modifier, Modifiers
from swarmstep.sparse import NM
from swarmstep.train.config import Config


def build_modifiers(config: Config) -> Modifiers:
    """Return what a config does to the model, in the order in which it is done.

    Raises:
        UsageError: an unknown form, or a number out of its range.
    """
    parts: list[Modifier] = []
    if config.sparse is not None:
        parts.append(_sparse(config.sparse))
    return Modifiers(*parts)


def _sparse(spec: str) -> Modifier:
    ratio, _, decay = spec.partition(",")
    n, _, m = ratio.partition(":")
    try:
        return NM(int(n), int(m), float(decay) if decay else NM.decay)
    except ValueError:
        raise UsageError(f"unknown sparsity {spec!r}; expected {spec_help.SPARSE}") from None
