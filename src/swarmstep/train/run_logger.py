"""Writes down and shows what happens in a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from swarmstep.comm.base import Comm
from swarmstep.train.config import Config
from swarmstep.train.job import Job, from_rank_0
from swarmstep.train.progress import Progress, View, choose_view
from swarmstep.train.run_folder import RunFolder, new_folder


class RunLogger:
    """The folder and the display of a run; on ranks other than 0 nothing is written or shown.

    Args:
        config: resolved.
        comm: the group. Collective: an error of rank 0 is raised on all.
        job: says where, and whether.
    """

    def __init__(self, config: Config, comm: Comm, job: Job) -> None:
        self._folder: RunFolder | None = None
        self._view = View()
        self._listen = job.listen if comm.rank == 0 else None
        self.path: Path | None = None  # of the folder, on all ranks
        if job.keep:
            try:
                self.path = Path(from_rank_0(lambda: self._open(config, job), comm))
            except BaseException:
                self.close()
                raise
        if not job.quiet:
            title = f"{config.workload} {config.strategy}, {config.workers} workers, {config.backend}"
            self._view = choose_view(comm.rank, title)

    def _open(self, config: Config, job: Job) -> str:
        self._folder = RunFolder(job.out or new_folder(config), resume=job.resume)
        return str(self._folder.path)

    def begin(self, config: Config) -> None:
        """Write down what the run is."""
        if self._folder:
            self._folder.write_settings(config)

    def rewind(self, step: int) -> None:
        """Forget what was written after `step`."""
        if self._folder:
            self._folder.rewind(step)

    def record(self, **row: Any) -> None:
        """Write down one event."""
        if self._folder:
            self._folder.append(row)
        if self._listen:
            self._listen(row)

    def show(self, progress: Progress) -> None:
        """Show how far the run is."""
        self._view.show(progress)

    def end(self, model: nn.Module, summary: Mapping[str, Any]) -> None:
        """Write the trained model and, last, what says that the run is done."""
        if self._folder:
            self._folder.save_model(model)
            self._folder.write("summary.json", summary)

    def close(self) -> None:
        """Let go of the folder and the terminal."""
        self._view.close()
        if self._folder:
            self._folder.close()
