"""What tests need of this machine, and are skipped without."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarmstep.errors import UsageError
from swarmstep.network.namespaces import check_rights


def lacks(check: Callable[[], object]) -> str:
    """Return what a check says is missing, "" if nothing is."""
    try:
        check()
    except UsageError as error:
        return str(error)
    return ""


NETWORK = lacks(check_rights)
needs_network = pytest.mark.skipif(bool(NETWORK), reason=NETWORK)
