"""Writes down and shows what happens in a run, on the one worker that does so for all."""

from __future__ import annotations

import shlex
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from swarmstep.console import say
from swarmstep.errors import CheckpointError
from swarmstep.train.config import Config
from swarmstep.train.progress import Progress, View, choose_view
from swarmstep.train.run_folder import RunFolder


class RunLogger:
    """The folder and the display of a run; does nothing unless this worker leads (rank 0, or its successor).

    Args:
        path: of the run's folder, known to all workers (None: no files are written).
        folder: opened by this process, or held for it by its supervisor.
        title: of the display (None: nothing is shown).
        listen: called with each recorded row.
    """

    def __init__(
        self,
        path: Path | None,
        folder: RunFolder | None,
        title: str | None,
        listen: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.path = path
        self._folder, self._title, self._listen = folder, title, listen
        self._view = View()
        self._leads = False
        self._waiting = list[dict[str, Any]]()  # rows for which there was no room
        self._recording = threading.Lock()  # evaluations of an asynchronous run have a thread of their own

    def lead(self, leads: bool = True) -> None:
        """Say whether this worker writes and shows from now on."""
        if leads and not self._leads and self._title is not None:
            self._view = choose_view(self._title)
        self._leads = leads

    def begin(self, config: Config) -> None:
        """Write down what the run is."""
        if self._leads and self._folder:
            self._folder.write_settings(config)

    def rewind(self, step: int) -> None:
        """Remove what was recorded after `step`."""
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
        if self._leads and self._listen:
            self._listen(row)

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
        """Release the folder and the terminal."""
        self._view.close()
        if self._folder:
            self._folder.close()
