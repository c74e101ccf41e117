"""Runs one cell in real processes: on the loopback interface, or in network namespaces on a slow link."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from swarmstep.compare import cells
from swarmstep.compare.plan import Task
from swarmstep.compare.results import Cell
from swarmstep.errors import ResultNotFinite, SwarmstepError
from swarmstep.launch.processes import Place, run_group
from swarmstep.network.link import parse
from swarmstep.train.config import Config

TIME_LIMIT = 3600.0  # seconds for one cell


def run(task: Task, folder: Path, interrupts: list[int]) -> Cell:
    """Run a cell and return it, also if it fails.

    Args:
        task: with a backend other than sim; the network of its link is created and removed again.
        folder: of the comparison; holds the files of the run while it lasts.
        interrupts: as `launch.noting_interrupts` collects them.
    """
    started, out = time.monotonic(), folder / "running"
    shutil.rmtree(out, ignore_errors=True)
    try:
        with _placed(task) as place:
            outcome = run_group(arguments(task.config, out), task.config.workers, place, patience=TIME_LIMIT,
                                interrupts=interrupts)  # fmt: skip
        if outcome.code not in (0, ResultNotFinite.exit_code):
            return cells.failed(task, outcome.message)
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((out / "summary.json").read_text())
        return cells.finished(task, events, summary, time.monotonic() - started)
    except (SwarmstepError, OSError, ValueError, RuntimeError) as error:
        return cells.failed(task, str(error))
    finally:
        shutil.rmtree(out, ignore_errors=True)


@contextlib.contextmanager
def _placed(task: Task) -> Generator[Place]:
    if task.link is None:
        yield Place()
        return
    from swarmstep.network.namespaces import Network

    with Network(task.config.workers, parse(task.link), task.config.seed) as network:
        yield network.place()


def arguments(config: Config, out: Path) -> list[str]:
    """Return the arguments of ``swarmstep`` that run a resolved config, with its files in `out`."""
    words: list[str] = ["train", config.workload, "--out", str(out)]
    for field in dataclasses.fields(Config):
        value: Any = getattr(config, field.name)
        option = "--" + field.name.replace("_", "-")
        if field.name == "workload" or value is None or (field.name == "every" and config.when is not None):
            continue
        if field.name == "when" and value.startswith("warmup:") and "," not in value:
            value += f",every:{config.every}"  # --every does not go with --when
        if field.name == "settings":
            words += [word for name, text in value.items() for word in ("--set", f"{name}={text}")]
        elif isinstance(value, bool):
            words += [option] if value else []
        else:
            words += [option, str(value)]
    return words
