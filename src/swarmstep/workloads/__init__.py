"""The tasks that a run trains on: built-in ones by name, and the user's own by file.

Importing this does not import torch; `Workload`, `Examples` and `load` do, when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from swarmstep.workloads.defaults import BUILT_IN, BuiltIn, Defaults

if TYPE_CHECKING:
    from swarmstep.workloads.base import Examples, Workload
    from swarmstep.workloads.loading import load

__all__ = ["BUILT_IN", "BuiltIn", "Defaults", "Examples", "Workload", "load"]

_LAZY = {"Examples": "base", "Workload": "base", "load": "loading"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
