"""The tables of `ranking.py`, and who wins by how much: python benchmarks/ranking_table.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ranking
from paired import between, geometric

from swarmstep.compare.statistics import Estimate

REFERENCE = {1: "alone", 4: "local-sgd", 16: "local-sgd"}  # whose loss the others' is a multiple of, by workers

Rows = Sequence[Mapping[str, Any]]


def cell(rows: Rows, method: str, workers: int, every: int) -> Rows:
    """Return the runs of a cell; n is nothing to methods that have none."""
    of = (method, workers, every if ranking.METHODS[method].rounds else ranking.NEVER)
    found = [row for row in rows if (row["method"], row["workers"], row["every"]) == of]
    return [row for row in found if row["seed"] != ranking.TUNING_SEED]


def ratio(rows: Rows, method: str, other: str, workers: int, every: int) -> Estimate | None:
    """Return a method's test loss as a multiple of another's, over common seeds; None where there is none."""
    runs = (cell(rows, name, workers, every) for name in (method, other))
    a, b = ({run["seed"]: run["test_loss"] for run in of} for of in runs)
    seeds = sorted(a.keys() & b.keys())
    return geometric([a[seed] / b[seed] for seed in seeds]) if seeds else None


def ranked(rows: Rows, workers: int, every: int) -> dict[str, Estimate]:
    """Return the methods of a condition with the ratios of their losses to the reference's, the best first."""
    found = {name: ratio(rows, name, REFERENCE[workers], workers, every) for name in ranking.METHODS}
    known = [(name, of) for name, of in found.items() if of]
    return dict(sorted(known, key=lambda pair: pair[1].mean))


def told(found: Estimate | None) -> bool:
    """Return whether a ratio is told apart from 1 by its interval."""
    return found is not None and (found.high < 1 or found.low > 1)


OF_N = ("MB", "loss", "ratio", "seeds")
HEAD = ("method", "rate", *(f"n = {n}: {what}" for n in ranking.EVERY for what in OF_N))


def table(rows: Rows, workers: int) -> list[tuple[str, ...]]:
    """Return HEAD and a line for each method, the best at the first n first."""
    found = {n: ranked(rows, workers, n) for n in ranking.EVERY}
    names = dict.fromkeys(name for of in found.values() for name in of)
    return [HEAD, *((name, *_line(rows, name, workers, found)) for name in names)]


def _line(rows: Rows, name: str, workers: int, found: Mapping[int, Mapping[str, Estimate]]) -> list[str]:
    line: list[str] = []
    for n, of in found.items():
        runs = cell(rows, name, workers, n)
        line = line or [f"{run['rate']:g}" for run in runs[:1]]
        if name not in of:
            line += [""] * len(OF_N)
            continue
        loss, sent = (sum(run[key] for run in runs) / len(runs) for key in ("test_loss", "bytes"))
        ratio_of = "" if name == REFERENCE[workers] else between(of[name], 3)
        line += [f"{sent / 1e6:.3g}", f"{loss:.3f}", ratio_of, str(of[name].count)]
    return line


def tuning(rows: Rows, workers: int) -> list[tuple[str, ...]]:
    """Return a head and a line for each tuned method: MB, and the loss at each rate; the lowest first."""
    of = [row for row in rows if row["seed"] == ranking.TUNING_SEED and row["workers"] == workers]
    rates, losses = sorted({row["rate"] for row in of}), dict[str, dict[float, float]]()
    for row in of:
        losses.setdefault(row["method"], {})[row["rate"]] = row["test_loss"]
    least = {name: min(found.values()) for name, found in losses.items() if len(found) > len(ranking.RATES)}
    lines: list[tuple[str, ...]] = [("loss when tuned", *(f"rate {rate:g}" for rate in rates))]
    for name in sorted(least, key=least.__getitem__):
        lines.append((name, *(f"{losses[name][rate]:.3f}" if rate in losses[name] else "" for rate in rates)))
    return lines


def short(rows: Rows, workers: int) -> list[tuple[str, ...]]:
    """Return the table without rates, losses and numbers of seeds."""
    return [tuple(line[i] for i in (0, 2, 4, 6, 8)) for line in table(rows, workers)]


def verdict(rows: Rows, workers: int, every: int) -> str:
    """Say which method with rounds wins, by how much, and what is not told apart, also of those without Muon."""
    reference, found = REFERENCE[workers], ranked(rows, workers, every)
    with_rounds = [name for name in found if ranking.METHODS[name].rounds or workers == 1]
    plain = [name for name in with_rounds if ranking.METHODS[name].options.get("optimizer") != "muon"]
    said: list[str] = []
    for what, names in (("", with_rounds), ("without Muon ", plain)):
        best, *others = names
        if what and best == with_rounds[0]:
            continue
        even = [name for name in others if not told(ratio(rows, name, best, workers, every))]
        by = f" at {between(found[best], 3)} times the loss of `{reference}`" if best != reference else ""
        said.append(f"{what}`{best}` ends lowest{by} (not told from it: {_listed(even)})")
    others = [name for name in plain if name != reference]
    worse = [name for name in others if found[name].low > 1]
    even = [name for name in others if not told(found[name])]
    said.append(f"worse than `{reference}`: {_listed(worse)}; not told from it: {_listed(even)}")
    return f"With n = {every} {'; '.join(said)}."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"


def main() -> None:
    rows = ranking.read()
    for workers in ranking.STEPS:
        print(f"{workers} workers")
        for line in table(rows, workers):
            print(" | ".join(line))
        for n in ranking.EVERY:
            if ranked(rows, workers, n):
                print(verdict(rows, workers, n))


if __name__ == "__main__":
    main()
