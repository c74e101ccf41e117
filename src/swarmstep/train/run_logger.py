"""Writes down and shows what happens in a run, on the one worker that does so for all."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from swarmstep.console import say
from swarmstep.errors import CheckpointError
from swarmstep.tracking import SINKS, Sink, scalars
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.progress import Progress, View, choose_view
from swarmstep.train.run_folder import RunFolder


class RunLogger:
    """The folder and the display of a run; does nothing unless this worker leads (rank 0, or its successor).

    Args:
        path: of the run's folder, known to all workers (None: no files are written).
        folder: opened by this process, or held for it by its supervisor.
        title: of the display.
        job: how the run is carried out.
    """

    def __init__(
        self,
        path: Path | None,
        folder: RunFolder | None,
        title: str,
        job: Job,
    ) -> None:
        self.path = path
        self._folder, self._title, self._job = folder, title, job
        self._view = View()
        self._sinks = dict[str, Sink]()
        self._rewound = 0
        self._leads = False
        self._waiting = list[dict[str, Any]]()  # rows for which there was no room
        self._recording = threading.Lock()  # evaluations of an asynchronous run have a thread of their own

    def lead(self, leads: bool = True) -> None:
        """Say whether this worker writes and shows from now on."""
        if leads and not self._leads and not self._job.quiet:
            self._view = choose_view(self._title, self._job.stopping)
        self._leads = leads

    def begin(self, config: Config) -> None:
        """Write down what the run is."""
        if self._leads and self._folder:
            self._folder.write_settings(config)
            for name in self._job.track:
                self._sinks[name] = SINKS[name](self._folder.path, dataclasses.asdict(config), self._rewound)

    def rewind(self, step: int) -> None:
        """Remove what was recorded after `step`."""
        self._rewound = step
        if self._leads and self._folder:
            self._folder.rewind(step)

    def newest(self, kind: str) -> dict[str, Any]:
        """Return the last row of a kind that was recorded; an empty one if none was, or no files are written."""
        return self._folder.newest(kind) if self._folder else {}

    def record(self, **row: Any) -> None:
        """Record an event; where the file cannot be written, the row waits for the next one."""
        if self._leads and self._folder:
            with self._recording:
                self._waiting.append(row)
                try:
                    self._write_down()
                except CheckpointError as error:
                    if len(self._waiting) == 1:
                        self.complain(error)
                self._write_to_sinks(row)
        if self._leads and self._job.listen:
            self._job.listen(row)

    def _write_to_sinks(self, row: dict[str, Any]) -> None:
        """Give a row's numbers to the sinks; one that fails gets no more, and the training goes on."""
        if not self._sinks:
            return
        step, values = scalars(row)
        for name, sink in [*self._sinks.items()] if values else ():
            try:
                sink.write(step, values)
            except Exception as error:  # a foreign library's, of any kind
                del self._sinks[name]
                say(f"warning: --track {name} failed at step {step} and gets no more: {error}")

    def _write_down(self) -> None:
        if self._folder and self._waiting:
            self._folder.append(*self._waiting)
            self._waiting.clear()

    def complain(self, error: CheckpointError) -> None:
        """Say what could not be saved, though the training goes on."""
        if self._leads:
            say(f"warning: {error}; the training goes on")

    def show(self, progress: Progress) -> None:
        """Show how far the run is."""
        if self._leads:
            self._view.show(progress)

    def end(self, model: nn.Module, summary: Mapping[str, Any]) -> None:
        """Write the trained model and, last, the summary, which tells that the run is done.

        Raises:
            CheckpointError: they cannot be written, or the rows that wait.
        """
        if self._leads and self._folder:
            self._write_down()
            self._folder.save_model(model)
            self._folder.write("summary.json", summary)

    def resume_hint(self) -> str:
        """Return how to go on with a run that has stopped, for the end of a message."""
        return f"; go on with: swarmstep train --resume {shlex.quote(str(self.path))}"

    def close(self) -> None:
        """Release the folder, the sinks and the terminal."""
        self._view.close()
        for sink in self._sinks.values():
            with contextlib.suppress(Exception):  # a foreign library's
                sink.close()
        if self._folder:
            self._folder.close()
