"""The tables of `ranking.py`, and who wins by how much: python benchmarks/ranking_table.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ranking
from paired import between, geometric

from swarmstep.compare.statistics import Estimate

REFERENCE = {1: "alone", 4: "local-sgd", 16: "local-sgd"}  # whose loss the others' is a multiple of, by workers

Rows = Sequence[Mapping[str, Any]]


def losses(rows: Rows, method: str, workers: int, every: int) -> dict[int, float]:
    """Return seed -> test loss of a cell, infinite where a run has diverged. n is nothing to some."""
    of = (method, workers, every if ranking.METHODS[method].rounds else ranking.NEVER)
    return {
        row["seed"]: math.inf if row["test_loss"] is None else row["test_loss"]
        for row in rows
        if (row["method"], row["workers"], row["every"]) == of and row["seed"] != ranking.TUNING_SEED
    }


def ratio(rows: Rows, method: str, other: str, workers: int, every: int) -> Estimate | None:
    """Return a method's test loss as a multiple of another's, over common seeds; None where there is none."""
    a, b = (losses(rows, name, workers, every) for name in (method, other))
    seeds = sorted(a.keys() & b.keys())
    return geometric([a[seed] / b[seed] for seed in seeds]) if seeds else None


def ranked(rows: Rows, workers: int, every: int) -> list[str]:
    """Return the methods of a condition, the best first, by the ratio to the reference's loss."""
    found = {name: ratio(rows, name, REFERENCE[workers], workers, every) for name in ranking.METHODS}
    return sorted((n for n, r in found.items() if r), key=lambda n: found[n].mean)  # pyright: ignore


def told(found: Estimate | None) -> bool:
    """Return whether a ratio is told apart from 1 by its interval."""
    return found is not None and not math.isnan(found.low) and not found.low <= 1 <= found.high


def megabytes(rows: Rows, method: str, workers: int, every: int) -> str:
    """Return what a worker sends in a run, in MB."""
    of = (method, workers, every if ranking.METHODS[method].rounds else ranking.NEVER)
    sent = [
        r["bytes"]
        for r in rows
        if (r["method"], r["workers"], r["every"]) == of and r["seed"] != ranking.TUNING_SEED
    ]
    return f"{sum(sent) / len(sent) / 1e6:.3g}" if sent else ""


def table(rows: Rows, workers: int) -> list[tuple[str, ...]]:
    """Return a head and a line for each method: its rate, and for each n bytes, loss and ratio; the best first."""
    reference = REFERENCE[workers]
    of_n = [(f"n = {n}: MB sent", "test loss", f"times {reference}'s", "seeds") for n in ranking.EVERY]
    lines: list[tuple[str, ...]] = [("method", "rate", *(word for words in of_n for word in words))]
    names = ranked(rows, workers, ranking.EVERY[0])
    for name in names + [n for n in ranked(rows, workers, ranking.EVERY[1]) if n not in names]:
        cells: list[str] = []
        for n in ranking.EVERY:
            of, found = losses(rows, name, workers, n), ratio(rows, name, reference, workers, n)
            if not of or found is None:
                cells += [""] * 4
                continue
            shown = "" if name == reference else between(found, 3)
            cells += [megabytes(rows, name, workers, n), f"{sum(of.values()) / len(of):.3f}", shown, str(len(of))]
        rate = next(row["rate"] for row in rows if (row["method"], row["workers"]) == (name, workers))
        lines.append((name, f"{rate:g}", *cells))
    return lines


def verdict(rows: Rows, workers: int, every: int) -> str:
    """Say who wins a condition, by how much, and what is not told apart; with Muon and without."""
    reference = REFERENCE[workers]
    names = [name for name in ranked(rows, workers, every) if ranking.METHODS[name].rounds or workers == 1]
    muon = {name for name in names if ranking.METHODS[name].options.get("optimizer") == "muon"}
    parts: list[str] = []
    for what, among in (("", names), ("Without Muon ", [name for name in names if name not in muon])):
        if not among or (what and among == names):
            continue
        best, *others = among
        even = [name for name in others if not told(ratio(rows, name, best, workers, every))]
        lead = f"{what}`{best}` ends lowest"
        if best != reference:
            lead += f", at {_span(ratio(rows, best, reference, workers, every))} of `{reference}`'s loss"
        parts.append(f"{lead}; {_listed('not told apart from it', even)}")
    apart = [n for n in names if n not in muon and n != reference]
    found = {name: ratio(rows, name, reference, workers, every) for name in apart}
    above = [name for name, of in found.items() if of and told(of) and of.low > 1]
    even = [name for name, of in found.items() if not told(of)]
    parts.append(f"{_listed(f'Told to be worse than `{reference}`', above)}; {_listed('not told from it', even)}")
    return f"n = {every}: {'. '.join(parts)}."


def _span(found: Estimate | None) -> str:
    assert found
    return between(found, 3)


def _listed(what: str, names: Sequence[str]) -> str:
    return f"{what}: {', '.join(f'`{name}`' for name in names) or 'none'}"


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
