"""Texts that describe a section: its title, condition, target and environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep.compare.results import Cell, Results
from swarmstep.compare.series import TRAINING, differing
from swarmstep.network import link as links


def title(cell: Cell) -> str:
    """Return the cell's condition, such as "mnist lenet5, 4 workers, sign:1, in real processes"."""
    group = cell.group
    parts = [
        f"{_name(group.workload)} {group.model}",
        f"{group.workers} worker{'s' * (group.workers != 1)}",
        "" if group.shards == "iid" else f"shards {group.shards}",
        group.fault,
        "in real processes" if cell.real else "",
        f"at {link_in_words(cell.link)}" if cell.link else "",
    ]
    return ", ".join(part for part in parts if part)


def _name(workload: str) -> str:
    """Return the name of a workload; of a user's own, the stem of its file."""
    name, colon, rest = workload.partition(":")
    return Path(name).stem if name.endswith(".py") else f"{name}{colon}{rest}"


def link_in_words(spec: str) -> str:
    """Return a link for a reader: "100 Mbit/s and 5 ms" of "100mbit,5ms"."""
    parts = links.in_words(links.parse(spec))
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def condition(runs: Sequence[Cell]) -> dict[str, str]:
    """Return what all runs have in common: name -> value."""
    group, config = runs[0].group, runs[0].config
    varying = differing(runs)
    values: dict[str, Any] = {
        "workload": _name(group.workload),
        "model": group.model,
        "workers": group.workers,
        "shards": group.shards,
        "fault": group.fault or "none",
        "backend": group.backend,
        **({"link": group.link} if group.link else {}),
        **{
            name.replace("_", " "): config[name]
            for name in TRAINING
            if config.get(name) is not None and name not in varying
        },
        **{name: config[name] for name in ("objective", "sampling") if config.get("objective")},
    }
    return {name: str(value) for name, value in values.items()}


def target(values: Mapping[str, float]) -> str:
    """Return a target such as "test accuracy 0.95"; "" for none."""
    return ", ".join(f"test {name} {value:g}" for name, value in values.items())


def tuned_on(sources: Sequence[Results], cell: Cell) -> str:
    """Return what trials of the cell's workload were judged by, and why; "" if no source knows it."""
    known = [(source.about.get("tuned_on") or {}).get(cell.group.workload, "") for source in sources]
    return next(filter(None, known), "")


def commands(sources: Sequence[Results]) -> str:
    """Return the command lines that made the results, each once."""
    lines = [line for source in sources for line in source.about.get("command", "").splitlines()]
    return "\n".join(dict.fromkeys(lines))


def environment(runs: Sequence[Cell]) -> dict[str, str]:
    """Return versions, machine and seeds of the runs; all values if runs differ."""
    names = sorted({name for cell in runs for name in cell.environment} - {"command"})
    values = {
        name: ", ".join(sorted({str(cell.environment[name]) for cell in runs if name in cell.environment}))
        for name in names
    }
    return {**values, "seeds": ", ".join(str(seed) for seed in sorted({cell.seed for cell in runs}))}
