"""Libraries of the package's extras: imported when used, so that nothing else needs them."""

from __future__ import annotations

import importlib
from typing import Any

from swarmstep.errors import UsageError


def library(module: str, extra: str = "compare", what: str = "comparisons need") -> Any:
    """Return a module that an extra of this package installs; `what` needs it, for the message.

    Raises:
        UsageError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{what} {module.partition('.')[0]}, which cannot be imported ({error}): "
            f'pip install "swarmstep[{extra}]"'
        ) from None
