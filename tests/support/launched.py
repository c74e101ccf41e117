"""Processes of a test's own: some are killed or stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

import torch

from forking import CONTEXT
from swarmstep.comm.process_groups import serve_store

SOON = 120.0  # seconds; far beyond what any wait here should take, and far below patience


class Launched:
    """Processes of a test's own; ended, whatever happens, with the test."""

    def __init__(self, function: Any, workers: int, *arguments: Any, port: int = 0, how: Any = CONTEXT) -> None:
        self.store, own = serve_store()
        port = port or own
        self.said = [how.Pipe(duplex=False) for _ in range(workers)]
        self.processes = [
            how.Process(target=_begin, args=(self.said[rank][1], rank, workers, port, function, *arguments))
            for rank in range(workers)
        ]

    def __enter__(self) -> Launched:
        for process, (_, end) in zip(self.processes, self.said, strict=True):
            process.start()
            end.close()
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGCONT)
            process.kill()
            process.join()

    def hears(self, rank: int) -> Any:
        """Return what a process says next."""
        assert self.said[rank][0].poll(SOON), f"rank {rank} says nothing"
        return self.said[rank][0].recv()

    def signals(self, rank: int, number: int) -> None:
        os.kill(self.processes[rank].pid or 0, number)

    def ends(self, rank: int) -> int | None:
        """Return the exit code of a process that should end by itself now; None if it does not."""
        self.processes[rank].join(SOON)
        return self.processes[rank].exitcode


def _begin(end: Any, rank: int, workers: int, port: int, function: Any, *arguments: Any) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(workers), "MASTER_ADDR": "127.0.0.1"}
    os.environ |= {"MASTER_PORT": str(port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    torch.set_num_threads(1)
    function(end, *arguments)
