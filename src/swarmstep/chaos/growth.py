"""What the processes of a run hold, sampled now and then: memory, threads, files; and the keys of its store."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from swarmstep.chaos.slopes import Series, slope_of
from swarmstep.chaos.supervisors import Workers

SAMPLES = "growth.jsonl"
INTERVAL = 5.0  # seconds between two samples
STARTING = 180.0  # seconds of the life of each process, and of the store, that are left out: it still grows up
UNITS = {"memory": "MiB", "threads": "threads", "files": "open files", "keys": "keys"}
MIB = 2**20
PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


class Growth:
    """Samples a run into a file of its folder, one line for each process and for the store.

    Args:
        folder: of the run.
        supervisor: of its workers; one in this process, or several.
    """

    def __init__(self, folder: Path, supervisor: Workers) -> None:
        self._path, self._supervisor = folder / SAMPLES, supervisor
        self._next = 0.0

    def sample(self) -> None:
        """Take a sample, if one is due."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL
        supervisor = self._supervisor
        pids = {f"worker {supervisor.living[slot]}": pid for slot, pid in supervisor.pids.items()}
        rows = [{"who": who, **held} for who, pid in pids.items() if (held := _held(pid))]
        rows += [{"who": "supervisor", **_held(os.getpid())}]
        with contextlib.suppress(RuntimeError):  # the store does not answer
            rows += [{"who": "store", "keys": supervisor.keys()}]
        with self._path.open("a") as file:
            file.writelines(json.dumps({"time": time.time(), **row}) + "\n" for row in rows)


def _held(pid: int) -> dict[str, float]:
    """Return what a process holds; nothing if it has ended, or this system does not tell."""
    process = Path("/proc") / str(pid)
    try:
        return {
            "memory": int((process / "statm").read_text().split()[1]) * PAGE / MIB,
            "threads": len(os.listdir(process / "task")),
            "files": len(os.listdir(process / "fd")),
        }
    except OSError:
        return {}


def growth_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the growth of what was sampled into a file, such as "worker, memory"; a run may still write to it.

    The workers have a slope in common. Each `Slope` comes with the mean, the unit, and the hours that it is of.
    """
    series = defaultdict[tuple[str, str], defaultdict[str, list[tuple[float, float]]]](lambda: defaultdict(list))
    for row in _rows(path):
        for quantity in UNITS.keys() & row.keys():
            series[row["who"].partition(" ")[0], quantity][row["who"]].append((row["time"] / 3600, row[quantity]))
    lives = {key: [_grown_up(life) for life in of.values()] for key, of in sorted(series.items())}
    return {
        ", ".join(key): {
            **slope._asdict(),
            "mean": sum(value for life in of for _, value in life) / sum(map(len, of)),
            "unit": UNITS[key[1]],
            "hours": max(life[-1][0] for life in of if life) - min(life[0][0] for life in of if life),
        }
        for key, of in lives.items()
        if (slope := slope_of(of))
    }


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):  # the last line may be incomplete
            rows.append(json.loads(line))
    return rows


def _grown_up(life: Series) -> Series:
    return [(hour, value) for hour, value in life if hour >= life[0][0] + STARTING / 3600]


def growth_text(growth: dict[str, dict[str, Any]]) -> list[str]:
    """Return a line for each quantity: its slope with the 95 % interval, and whether 0 is within it."""
    return [
        f"  {name}: {row['mean']:.1f} {row['unit']}, {row['slope']:+.3g} an hour "
        f"(95 %: {row['low']:+.3g} to {row['high']:+.3g}; {row['lives']} lives, {row['hours']:.2f} h)"
        f"{'' if row['low'] <= 0 <= row['high'] else ': it ' + ('grows' if row['slope'] > 0 else 'shrinks')}"
        for name, row in growth.items()
    ]


def main(arguments: Sequence[str]) -> None:
    """Print the growth of what was sampled into files."""
    for name in arguments:
        print("\n".join([name, *growth_text(growth_of(Path(name)))]))


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
