"""A run that `swarmstep train` has finished, as results of one cell, so that it can be reported and compared."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from swarmstep.compare import cells
from swarmstep.compare.methods import OPTIONS
from swarmstep.compare.plan import Task
from swarmstep.compare.results import ADDED, Results
from swarmstep.errors import CheckpointError, DataError
from swarmstep.train.config import Config
from swarmstep.train.run_folder import read_config


def is_run(folder: Path) -> bool:
    """Return whether a folder is one of `swarmstep train`."""
    return (folder / "config.json").is_file()


def load_run(folder: Path) -> Results:
    """Return the results of the finished run in a folder.

    Raises:
        DataError: the run is not done, or a file is missing or damaged.
    """
    try:
        config = read_config(folder, done=True)
        summary = json.loads((folder / "summary.json").read_text())
        events = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        environment = json.loads((folder / "environment.json").read_text())
        command = environment.pop("command")
        cell = cells.finished(Task("run", method_of(config), config, None), events, summary, summary["seconds"])
        cell = dataclasses.replace(cell, environment={**cell.environment, **environment})  # of the run's machine
    except FileNotFoundError as error:
        done = (folder / "summary.json").exists()
        why = f"{error.filename} is missing" if done else "it is not done: `swarmstep watch` shows how far it is"
        raise DataError(f"{folder}: no report of this run: {why}") from None
    except (OSError, CheckpointError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise DataError(f"{folder}: no report of this run: a file is damaged or foreign: {error}") from None
    title = f"{Path(config.workload.split(':')[0]).stem}: {config.strategy}"
    about: dict[str, Any] = {"title": title, "command": shlex.join(["swarmstep", *command[1:]])}
    return Results(about, (cell,))


def method_of(config: Config) -> str:
    """Return the specification of a run's method, as `compare --strategies` would have it."""
    usual = {f.name: (f.default, ADDED.get(f.name)) for f in dataclasses.fields(Config)}
    given = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) not in usual[name]}
    if "when" in given and given["when"] == f"every:{config.every}":
        del given["when"]
    return "+".join(
        [config.strategy, *(f"{name}={value}" for name, value in {**config.settings, **given}.items())]
    )
