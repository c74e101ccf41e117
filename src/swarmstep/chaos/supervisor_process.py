"""A supervisor in a process of its own: ``python -m swarmstep.chaos.supervisor_process SPEC``.

It writes what happens to its workers to standard output, a JSON object a line, and last how the run has ended. It
ends with the process that started it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from swarmstep.elastic.supervisor import Supervisor, SupervisorOptions
from swarmstep.launch.processes import Place


class Spec(NamedTuple):
    """What a supervisor is told.

    `slots`: slot -> incarnation of its last worker, -1 before the first. `namespaces`: of each slot, where there
    are some. `parent`: the process with which it ends.
    """

    arguments: list[str]
    folder: str
    errors: str
    store: str
    environment: dict[str, str]
    slots: dict[str, int]
    namespaces: dict[str, str]
    parent: int


def main(text: str) -> None:
    """Supervise until the run is over."""
    spec = Spec(**json.loads(text))
    namespaces = {int(slot): name for slot, name in spec.namespaces.items()}
    place = Place(
        environment=spec.environment, store=spec.store, namespace=namespaces.__getitem__ if namespaces else None
    )
    options = SupervisorOptions(
        listen=_tell, errors=Path(spec.errors), follows={int(slot): last for slot, last in spec.slots.items()}
    )
    with Supervisor(spec.arguments, len(spec.slots), Path(spec.folder), place, options) as supervisor:
        while (outcome := supervisor.attend(0.1)) is None:
            if os.getppid() != spec.parent:
                return
    _tell({"kind": "outcome", "code": outcome.code, "message": outcome.message})


def _tell(row: dict[str, Any]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
