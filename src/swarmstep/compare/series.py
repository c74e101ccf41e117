"""Groups cells into series: the runs of one method at one n with the same settings, over seeds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from swarmstep.compare.results import Cell, CellGroup, Results
from swarmstep.console import plain
from swarmstep.train.config import GRADIENTS

_SEED_AND_PLACE = ("seed", "backend", "data")
_UNSHOWN = ("checkpoint_every",)  # follows from the steps and changes no result
# Fields of a config besides those that are tuned and those that the method's specification names.
TRAINING = (
    *("steps", "batch", "optimizer", "schedule", "weight_decay", "warmup", "clip"),
    *("speeds", "jitter", "disturb"),
)


@dataclasses.dataclass(frozen=True)
class Series:
    """The runs of one method at one n, with the same settings, over seeds.

    Args:
        method: as given to --strategies; if it was run with several settings, followed by those that differ.
        every: n.
        cells: finished runs, ordered by seed, at most one a seed.
        failed: the other runs.
        chosen: learning rate, settings, and training options in which the series of the condition differ.
        tried: number of settings that tuning compared.
        rates: learning rates that tuning compared, ascending.
    """

    method: str
    every: int
    cells: tuple[Cell, ...]
    failed: tuple[Cell, ...]
    chosen: Mapping[str, str]
    tried: int
    rates: tuple[float, ...]

    @property
    def count(self) -> int:
        """Number of runs, including failed ones."""
        return len(self.cells) + len(self.failed)


def distinct(sources: Iterable[Results]) -> list[Cell]:
    """Return each cell of the sources once, by source, group and seed; a finished one replaces a failed one.

    Methods that average gradients at every step count as n = 1, whatever their config says.
    """
    by_key: dict[str, tuple[int, Cell]] = {}
    for number, source in enumerate(sources):
        for cell in sorted(source.cells, key=lambda cell: cell.key):
            cell = _evaluated(_at_every_step(cell))
            known = by_key.get(cell.key)
            if known is None or (known[1].failed and not cell.failed):
                by_key[cell.key] = (known[0] if known else number, cell)
    ordered = sorted(by_key.values(), key=lambda item: (item[0], item[1].group, item[1].seed, item[1].key))
    return [cell for _, cell in ordered]


def _at_every_step(cell: Cell) -> Cell:
    if cell.config["strategy"] not in GRADIENTS:
        return cell
    return dataclasses.replace(cell, config={**cell.config, "every": 1})


def _evaluated(cell: Cell) -> Cell:
    return cell if cell.points or cell.failed else dataclasses.replace(cell, failed="it was never evaluated")


def series_of(runs: Sequence[Cell], tuning: Sequence[Cell]) -> list[Series]:
    """Return the series of one condition, by method and n.

    Args:
        runs: all runs of the condition, finished or failed.
        tuning: cells of the trials that chose their settings.
    """
    groups: dict[CellGroup, dict[str, list[Cell]]] = {}
    for cell in runs:
        groups.setdefault(cell.group, {}).setdefault(_text(settings(cell)), []).append(cell)
    varying = [name for name in TRAINING if name in differing(runs)]
    series: list[Series] = []
    for group, variants in sorted(groups.items()):
        differences = [
            name for name in differing([cells[0] for cells in variants.values()]) if name not in _UNSHOWN
        ]
        trials = [cell for cell in tuning if _same_method(cell.group, group)]
        tried = {_text(settings(cell)) for cell in trials}
        rates = sorted({float(cell.config["lr"]) for cell in trials})
        for text in sorted(variants):
            cells = sorted(variants[text], key=lambda cell: cell.seed)
            suffix = ", ".join(f"{name} {_shown(cells[0].config.get(name))}" for name in differences)
            series.append(
                Series(
                    f"{group.method} ({suffix})" if suffix else group.method,
                    group.every,
                    tuple(cell for cell in cells if not cell.failed),
                    tuple(cell for cell in cells if cell.failed),
                    _chosen(cells[0], varying),
                    len(tried),
                    tuple(rates),
                )
            )
    return series


def _same_method(a: CellGroup, b: CellGroup) -> bool:
    return (a.method, a.every) == (b.method, b.every)


def settings(cell: Cell) -> dict[str, Any]:
    """Return the cell's config without its seed and without the place where it ran."""
    return {name: value for name, value in cell.config.items() if name not in _SEED_AND_PLACE}


def differing(cells: Sequence[Cell]) -> list[str]:
    """Return the fields of the configs, except seed and place, that differ between the cells."""
    names = sorted({name for cell in cells for name in settings(cell)})
    return [name for name in names if len({_text(cell.config.get(name)) for cell in cells}) > 1]


def _chosen(cell: Cell, varying: Sequence[str]) -> dict[str, str]:
    settings = {
        f"outer {name}" if name == "lr" else name: value for name, value in cell.config["settings"].items()
    }
    values = {"lr": cell.config["lr"], **settings, **{name: cell.config[name] for name in varying}}
    return {name: _shown(value) for name, value in values.items()}


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={inner}" for name, inner in value.items()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return json.dumps(plain(value), sort_keys=True)
