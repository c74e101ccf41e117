"""The results of a comparison: one small JSON file for each cell of the grid, or all of them in one file.

::

    DIR/compare.json  cells/KEY.json  lock
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from swarmstep.console import plain
from swarmstep.errors import DataError
from swarmstep.network.trace import Trace
from swarmstep.train.run_folder import replace_file

VERSION = 1
IGNORED = ("backend", "data", "checkpoint_every")  # fields of a config that do not tell cells apart
# Fields that older cells lack, with what those were run with; a key does not have them then.
ADDED: Mapping[str, Any] = {
    "warmup": 0,
    "clip": 0.0,
    "balance": "off",
    "max_batch": None,
    "speeds": None,
    "jitter": 0.0,
    "disturb": None,
    "method": "gradient",
    "graph": None,
    "sparse": None,
    "regularizer": None,
    "objective": None,
    "sampling": "natural",
    "proximal": None,
    "control_variates": False,
    "optimizer_state": "local",
    "eager": False,
}


class Point(NamedTuple):
    """An evaluation after `step` local steps.

    `seconds`: training time so far without evaluations, in real processes (NaN in simulation, where the report's
    virtual clock computes it). `bytes`: sent so far by a worker, mean over the workers. Losses, accuracy and the
    metric (0 to 1, NaN if there is none) are those of the weights that the strategy would return.
    """

    step: int
    seconds: float
    bytes: float
    validation_loss: float
    validation_accuracy: float
    test_loss: float
    test_accuracy: float
    validation_metric: float = math.nan
    test_metric: float = math.nan


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid, finished or failed.

    Args:
        purpose: "run", or "tune" for a trial that helped to choose settings.
        method: as given to --strategies: NAME, or NAME+setting=value+codec=int8+delay=8 and so on.
        config: all fields of a resolved Config, also for a cell that failed at once.
        link: of the real network that it ran on ("100mbit,5ms"); None in simulation and on loopback.
        points: in the order of steps; the last one is at the end of the run.
        trace: Trace.folded of rank 0.
        trust: (step, distrusted ranks) for each round in which they changed.
        by_worker: what each worker did, in rank order: the fields of `WorkDone`; empty where that is not known.
        parameters: of the model.
        compute_seconds: mean time of a local step of one worker, without rounds.
        round_seconds: mean time of a round without probes; in simulation only the worker's own work.
        probe_seconds: of all probes.
        seconds: wall time of the whole cell, including evaluations.
        metric: the workload's own, by which it is judged in place of the accuracy ("" if it has none).
        failed: the reason why there is no result; None if it finished.
        environment: versions and machine, and the SHA-256 of the workload's corpus, where it has one.
    """

    purpose: str
    method: str
    config: Mapping[str, Any]
    link: str | None = None
    points: tuple[Point, ...] = ()
    trace: Sequence[Any] = ()
    trust: Sequence[tuple[int, Sequence[int]]] = ()
    by_worker: Sequence[Mapping[str, Any]] = ()
    parameters: int = 0
    compute_seconds: float = math.nan
    round_seconds: float = math.nan
    probe_seconds: float = 0.0
    seconds: float = math.nan
    metric: str = ""
    failed: str | None = None
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    @property
    def real(self) -> bool:
        """Whether it ran in real processes."""
        return self.config["backend"] != "sim"

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config["seed"]

    @property
    def group(self) -> CellGroup:
        """What it shares with the runs of other seeds."""
        config = self.config
        return CellGroup(
            config["workload"],
            config["model"],
            self.method,
            config["every"],
            config["workers"],
            config["shards"],
            config["fault"] or "",
            config["backend"] if self.real else "sim",
            self.link or "",
        )

    @property
    def key(self) -> str:
        """16 hexadecimal digits that identify the cell."""
        return key_of(self.purpose, self.method, self.config, self.link)

    def rounds(self) -> Trace:
        """Return the rounds of the run: what was sent, and when."""
        return Trace(self.trace)


class CellGroup(NamedTuple):
    """What runs that differ only in their seeds have in common; `fault` and `link` are "" if there is none."""

    workload: str
    model: str
    method: str
    every: int
    workers: int
    shards: str
    fault: str
    backend: str
    link: str

    @property
    def condition(self) -> tuple[str, str, int, str, str, str, str]:
        """The condition under which methods are compared: everything except the method and n."""
        return (self.workload, self.model, self.workers, self.shards, self.fault, self.backend, self.link)


def key_of(purpose: str, method: str, config: Mapping[str, Any], link: str | None) -> str:
    """Return the key of a cell; it does not depend on the location of the data."""
    real = config["backend"] != "sim"
    unsaid = (*((name, config.get(name)) for name in IGNORED), *ADDED.items())
    kept = dict(item for item in config.items() if item not in unsaid)
    text = json.dumps(plain([purpose, method, kept, config["backend"] if real else "sim", link]), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class Results:
    """All cells of a comparison, and how they were made.

    `about` has `title`, `command` (the command lines), `target` ({"accuracy": A}, {"loss": L}, one of a metric, or
    {}), `tuned_on` (workload -> what trials were judged by, and why; earlier versions lack it), `links` (of the
    virtual clock) and `clock` (its options).
    """

    about: Mapping[str, Any]
    cells: tuple[Cell, ...]

    def runs(self) -> list[Cell]:
        """Return the finished runs, without tuning trials."""
        return [cell for cell in self.cells if cell.purpose == "run" and not cell.failed]


def to_json(cell: Cell) -> dict[str, Any]:
    """Return a cell as plain JSON, with null for NaN."""
    content = {f.name: getattr(cell, f.name) for f in dataclasses.fields(Cell)}
    return plain({"version": VERSION, **content, "points": [list(point) for point in cell.points]})


def from_json(content: Any, where: str) -> Cell:
    """Return the cell that `to_json` wrote.

    Args:
        content: JSON.
        where: the file, for the error.

    Raises:
        DataError: the content is not that of a cell.
    """
    try:
        if content["version"] != VERSION:
            raise DataError(f"{where}: expected version {VERSION}, found {content['version']!r}; run it again")
        content = {"by_worker": (), "metric": "", **content}  # earlier versions lack them
        fields: dict[str, Any] = {f.name: content[f.name] for f in dataclasses.fields(Cell)}
        points = [Point(int(step), *map(_number, rest)) for step, *rest in fields["points"]]
        for name in ("compute_seconds", "round_seconds", "probe_seconds", "seconds"):
            fields[name] = _number(fields[name])
        fields["points"] = tuple(points)
        fields["config"] = {**ADDED, **fields["config"]}
        cell = Cell(**fields)
        hash(cell.group)
        list(cell.rounds())
        return cell
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where} is damaged or foreign ({type(error).__name__}: {error}); delete it") from None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def load(source: Path) -> Results:
    """Return the results in a folder that `swarmstep compare` wrote, or in a file written by `dumps`.

    Raises:
        DataError: there are none, or a file is damaged.
    """
    if source.is_dir():
        return Results(load_about(source), load_cells(source))
    content = _read(source)
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise DataError(f"{source}: expected results of `swarmstep compare`: an object with a list `cells`")
    cells = [from_json(cell, f"{source}, cell {i}") for i, cell in enumerate(content["cells"])]
    return Results(content.get("about", {}), tuple(cells))


def load_about(folder: Path) -> Mapping[str, Any]:
    """Return the description of the comparison in a folder, without its cells.

    Raises:
        DataError: compare.json is missing or damaged.
    """
    return _read(folder / "compare.json")


def load_cells(folder: Path) -> tuple[Cell, ...]:
    """Return the cells in the folder of a comparison.

    Raises:
        DataError: one of them is damaged.
    """
    return tuple(from_json(_read(file), str(file)) for file in sorted((folder / "cells").glob("*.json")))


def dumps(results: Results) -> str:
    """Return all cells as one JSON text, one line a cell."""
    cells = ",\n".join(json.dumps(to_json(cell)) for cell in sorted(results.cells, key=lambda cell: cell.key))
    return f'{{"about": {json.dumps(plain(results.about))},\n"cells": [\n{cells}\n]}}\n'


def add(folder: Path, cell: Cell) -> None:
    """Write a cell into the folder of a comparison, atomically."""
    text = json.dumps(to_json(cell)) + "\n"
    replace_file(folder / "cells" / f"{cell.key}.json", lambda partial: partial.write_text(text))


def _read(file: Path) -> Any:
    try:
        content = json.loads(file.read_text())
    except OSError as error:
        raise DataError(
            f"{file}: {error.strerror}; expected results of `swarmstep compare`, or a run's folder"
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}; delete it and run the comparison again") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: expected a JSON object, found {type(content).__name__}")
    return content


def check_corpora(cells: Iterable[Cell], expected: Mapping[str, str | None] | None = None) -> None:
    """Refuse cells of one workload that were run on different texts: their losses say nothing about each other.

    Args:
        cells: of any workloads.
        expected: workload -> SHA-256 of its corpus, where it is known beforehand.

    Raises:
        DataError: names the workload and both.
    """
    known = {**(expected or {})}
    for cell in cells:
        name, found = cell.config["workload"], cell.environment.get("corpus")
        if not cell.failed and known.setdefault(name, found) != found:
            raise DataError(
                f"{name}: cell {cell.key} was run on a corpus with SHA-256 {found}, others on {known[name]}; "
                "compare runs of one Python version, or of one --data"
            )


def grouped(cells: Iterable[Cell]) -> dict[CellGroup, list[Cell]]:
    """Return the cells of each group, ordered by seed."""
    groups: dict[CellGroup, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        groups.setdefault(cell.group, []).append(cell)
    return groups
