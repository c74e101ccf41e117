"""A table of one's own as CSV: numbers and a column of two labels, split and standardized."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from swarmstep.errors import DataError
from swarmstep.seeding import generator
from swarmstep.workloads.base import Examples

TEST = 0.2  # of the rows of each label


class Table(NamedTuple):
    """Standardized float32 inputs [N, columns] and targets of 0 and 1, and the names of the columns."""

    train: Examples
    test: Examples
    columns: tuple[str, ...]


def read_table(file: Path, label: str = "") -> Table:
    """Return the rows of a CSV file with a header; a fifth of each label's rows, at random, is the test part.

    Every column is standardized by mean and deviation of the training part (a constant one becomes 0).

    Args:
        file: UTF-8, comma-separated, numbers in all cells.
        label: the column with the labels, 1 for positive and 0 for negative; by default the last one.

    Raises:
        DataError: the file cannot be read; no such column; a cell is empty, not finite or no number; a row of
            another length; labels other than 0 and 1; fewer than 5 rows of a label. It names row and column.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            header, *rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read as a CSV table ({error})") from error
    except ValueError:
        raise DataError(f"{file}: expected a header and rows, found an empty file") from None
    label = label or header[-1]
    if header.count(label) != 1 or len(header) < 2:
        raise DataError(f"{file}: expected one column {label!r} and others, found {', '.join(header)}")
    numbers = torch.tensor(
        [_numbers(file, line, header, row) for line, row in enumerate(rows, start=2)], dtype=torch.float64
    ).view(len(rows), len(header))
    place = header.index(label)
    targets = numbers[:, place]
    if odd := [value for value in targets.unique().tolist() if value not in (0.0, 1.0)]:
        raise DataError(
            f"{file}: column {label!r}: expected labels 0 and 1, found {odd[0]:g}; name another column as "
            "imbalanced:COLUMN, or recode it"
        )
    inputs = numbers[:, [i for i in range(len(header)) if i != place]]
    test = torch.cat([_drawn(file, label, targets, value) for value in (0, 1)]).sort().values
    held = torch.zeros(len(rows), dtype=torch.bool)
    held[test] = True
    mean, deviation = inputs[~held].mean(0), inputs[~held].std(0, unbiased=False)
    inputs = ((inputs - mean) / torch.where(deviation > 0, deviation, 1.0)).float()
    parts = (Examples(inputs[part], targets[part].long()) for part in (~held, held))
    return Table(*parts, columns=tuple(name for name in header if name != label))


def _numbers(file: Path, line: int, header: Sequence[str], row: Sequence[str]) -> list[float]:
    if len(row) != len(header):
        raise DataError(f"{file}, row {line}: expected {len(header)} cells, as in the header, found {len(row)}")
    found: list[float] = []
    for name, cell in zip(header, row, strict=True):
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            what = "a missing value" if not cell.strip() else repr(cell)
            raise DataError(
                f"{file}, row {line}, column {name!r}: expected a finite number, found {what}; fill or drop "
                "missing values, and encode text as numbers, first"
            )
        found.append(value)
    return found


def _drawn(file: Path, label: str, targets: torch.Tensor, value: int) -> torch.Tensor:
    """Return the rows of a label that are the test part."""
    rows = (targets == value).nonzero().flatten()
    count = int(TEST * len(rows))
    if count < 1:
        raise DataError(
            f"{file}: column {label!r}: expected at least {math.ceil(1 / TEST)} rows with label {value}, found "
            f"{len(rows)}"
        )
    return rows[torch.randperm(len(rows), generator=generator("table", value))[:count]]
