"""A process that runs simulated cells one after another: a task as a JSON line in, a cell as a JSON line out.

The pool starts it as ``python -m swarmstep.compare.pool_worker``; it exits when its standard input ends.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import IO, Any

from swarmstep.compare import cells
from swarmstep.compare.plan import Task
from swarmstep.compare.results import Cell, to_json
from swarmstep.errors import SwarmstepError
from swarmstep.launch.stopping import orphaned
from swarmstep.train.config import Config
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.workloads import Workload, load


def main() -> None:
    """Run cells until standard input ends."""
    import torch

    torch.set_num_threads(1)
    answers = _private_output()
    for line in sys.stdin:
        content: dict[str, Any] = json.loads(line)
        content["config"] = Config(**content["config"])
        task = Task(**content)
        answer = json.dumps(to_json(run(task)))
        if orphaned():
            return
        print(answer, file=answers, flush=True)


def run(task: Task) -> Cell:
    """Run a cell in this process and return it, also if it fails."""
    started, events = time.monotonic(), list[dict[str, Any]]()
    try:
        workload = _workload(task.config.workload, task.config.data)
        job = Job(stopping=orphaned, quiet=True, keep=False, listen=events.append)
        summary = simulated(task.config, workload, job)
    except SwarmstepError as error:
        return cells.failed(task, str(error))
    except Exception as error:  # raised by a workload of the user's own
        return cells.failed(task, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
    return cells.finished(task, events, summary, time.monotonic() - started)


@functools.lru_cache(maxsize=2)
def _workload(name: str, data: str | None) -> Workload:
    return load(name, Path(data) if data else None)


def _private_output() -> IO[str]:
    """Return a stream for answers, the former standard output; everything else printed goes to standard error."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
