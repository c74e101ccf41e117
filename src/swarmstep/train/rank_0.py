"""What rank 0 does for all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch

from swarmstep.comm.base import Comm
from swarmstep.errors import CheckpointError, DataError, SwarmstepError, UsageError


def from_rank_0(make: Callable[[], str], comm: Comm) -> str:
    """Return on all ranks what `make()` returns on rank 0, where alone it is called. Collective.

    Raises:
        SwarmstepError: what `make` raised on rank 0, on all ranks.
    """
    reply, problem = "", None  # an exit code of one digit, then the result or the error message
    if comm.rank == 0:
        try:
            reply = "0" + make()
        except SwarmstepError as error:
            reply, problem = f"{error.exit_code}{error}", error
    content = torch.tensor(list(reply.encode()), dtype=torch.uint8)
    length = int(comm.broadcast(torch.tensor(len(content)), 0))
    buffer = content if comm.rank == 0 else torch.zeros(length, dtype=torch.uint8)
    reply = bytes(comm.broadcast(buffer, 0).tolist()).decode()
    if reply[0] != "0":
        kinds = {str(kind.exit_code): kind for kind in (UsageError, DataError, CheckpointError)}
        raise problem or kinds.get(reply[0], SwarmstepError)(reply[1:])
    return reply[1:]
