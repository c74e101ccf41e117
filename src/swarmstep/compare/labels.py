"""What a section is about, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep.compare.results import Cell, Results
from swarmstep.compare.series import TRAINING, differing
from swarmstep.network import link as links

_UNITS = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))


def title(cell: Cell) -> str:
    """Return what the cell's condition is, such as "mnist lenet5, 4 workers, sign:1, in real processes"."""
    group = cell.group
    parts = [
        f"{_name(group.workload)} {group.model}",
        f"{group.workers} worker{'s' * (group.workers != 1)}",
        "" if group.shards == "iid" else f"shards {group.shards}",
        group.fault,
        "in real processes" if cell.real else "",
        f"at {_spoken(cell.link)}" if cell.link else "",
    ]
    return ", ".join(part for part in parts if part)


def _name(workload: str) -> str:
    """Return the name of a workload: the stem of its file where it is one's own."""
    return Path(workload.split(":")[0]).stem


def _spoken(spec: str) -> str:
    link = links.parse(spec)
    size, unit = next(((size, unit) for size, unit in _UNITS if link.rate >= size), _UNITS[-1])
    parts = [f"{link.rate / size:g} {unit}"]
    parts += [f"{link.delay * 1e3:g} ms"] * bool(link.delay)
    parts += [f"{link.loss * 100:g} % loss"] * bool(link.loss)
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def condition(runs: Sequence[Cell]) -> dict[str, str]:
    """Return name -> value of what all runs have in common."""
    group, config = runs[0].group, runs[0].config
    odd = differing(runs)
    values: dict[str, Any] = {
        "workload": _name(group.workload),
        "model": group.model,
        "workers": group.workers,
        "shards": group.shards,
        "fault": group.fault or "none",
        "backend": group.backend,
        **({"link": group.link} if group.link else {}),
        **{name.replace("_", " "): config[name] for name in TRAINING if name in config and name not in odd},
    }
    return {name: str(value) for name, value in values.items()}


def target(wanted: Mapping[str, float]) -> str:
    """Return a target in words, "" for none."""
    return ", ".join(f"test {name} {value:g}" for name, value in wanted.items())


def commands(sources: Sequence[Results]) -> str:
    """Return what was typed, a line for each command, each once."""
    lines = [line for source in sources for line in source.about.get("command", "").splitlines()]
    return "\n".join(dict.fromkeys(lines))


def environment(runs: Sequence[Cell]) -> dict[str, str]:
    """Return versions, machine and seeds of the runs; where runs differ, all values."""
    names = sorted({name for cell in runs for name in cell.environment} - {"command"})
    found = {
        name: ", ".join(sorted({str(cell.environment[name]) for cell in runs if name in cell.environment}))
        for name in names
    }
    return {**found, "seeds": ", ".join(str(seed) for seed in sorted({cell.seed for cell in runs}))}
