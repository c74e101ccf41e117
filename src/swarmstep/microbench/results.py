"""The results of a benchmark: rows of times, bytes sent, other figures, and what was skipped and why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One case that was timed; `ratio` is its median divided by that of `limit`, timed in the same run."""

    name: str
    workers: int
    parameters: int
    median_seconds: float
    limit: str | None = None  # None: it is itself a limit of others
    limit_seconds: float | None = None
    ratio: float | None = None


@dataclasses.dataclass(frozen=True)
class Sent:
    """Bytes that a worker sent in one round, means over the workers."""

    name: str
    workers: int
    parameters: int
    metered: float
    formula: float
    interface: float | None = None  # payload counted on the network interface; None if workers share one


@dataclasses.dataclass(frozen=True)
class Skipped:
    """One case that was not timed."""

    name: str
    skipped: str  # the reason
    workers: int | None = None  # None: any
    parameters: int | None = None


@dataclasses.dataclass(frozen=True)
class Figure:
    """A number that is no time: a count, or an error."""

    name: str
    workers: int
    value: float


@dataclasses.dataclass
class Report:
    """The outcome of one run of a benchmark."""

    rows: list[Measurement] = dataclasses.field(default_factory=list[Measurement])
    skipped: list[Skipped] = dataclasses.field(default_factory=list[Skipped])
    sent: list[Sent] = dataclasses.field(default_factory=list[Sent])
    figures: list[Figure] = dataclasses.field(default_factory=list[Figure])

    def add(self, other: Report) -> None:
        """Append the contents of another report."""
        self.rows += other.rows
        self.skipped += other.skipped
        self.sent += other.sent
        self.figures += other.figures

    def dumps(self) -> str:
        """Return this as JSON; `loads` reads it."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def loads(text: str) -> Report:
        """Return the report that `dumps` wrote."""
        content = json.loads(text)
        return Report(
            [Measurement(**one) for one in content["rows"]],
            [Skipped(**one) for one in content["skipped"]],
            [Sent(**one) for one in content["sent"]],
            [Figure(**one) for one in content["figures"]],
        )


def rows_of(
    medians: Mapping[str, float], limits: Mapping[str, str | None], workers: int, parameters: int
) -> list[Measurement]:
    """Return a row for each name in `limits`.

    Args:
        medians: name -> seconds.
        limits: name -> the name in `medians` that it is compared with, or None.
        workers: number of workers.
        parameters: elements of the vector.
    """
    rows: list[Measurement] = []
    for name, limit in limits.items():
        median = medians[name]
        limit_median = medians[limit] if limit else None
        ratio = median / max(limit_median, 1e-9) if limit_median is not None else None
        rows.append(Measurement(name, workers, parameters, median, limit, limit_median, ratio))
    return rows
