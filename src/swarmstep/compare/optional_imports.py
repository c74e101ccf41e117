"""The libraries of the extra `compare`: imported when used, so that training does not need them."""

from __future__ import annotations

import importlib
from typing import Any

from swarmstep.errors import UsageError


def library(module: str) -> Any:
    """Return a module that the extra `compare` installs.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"comparisons need {module.partition('.')[0]}, which cannot be imported ({error}): "
            'pip install "swarmstep[compare]"'
        ) from None
