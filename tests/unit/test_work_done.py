"""What each worker did: shares, words, means."""

from __future__ import annotations

import pytest

from swarmstep.train.work_done import WorkDone, mean_of, shares, unequal, work_table

ROWS = [WorkDone(0, 300, 30.0, 1.25, 0.0, 0.5), WorkDone(1, 100, 30.0, 1.0, 0.0, 2.25, 3)]


def test_in_words() -> None:
    assert work_table(ROWS) == [
        ("worker", "steps", "share", "computed", "waited", "late by", "dropped"),  # nothing was sent
        ("0", "300", "75%", "30.0 s", "1.2 s", "0.5", "0"),
        ("1", "100", "25%", "30.0 s", "1.0 s", "2.2", "3"),
    ]
    assert shares([WorkDone(0), WorkDone(1)]) == [0.5, 0.5]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], False),
        ([WorkDone(0)], False),
        ([WorkDone(0, 10, 1.0), WorkDone(1, 10, 1.19)], False),
        ([WorkDone(0, 10, 1.0), WorkDone(1, 10, 1.21)], True),
        ([WorkDone(0, 10, 1.0), WorkDone(1, 8, 1.0)], True),
        ([WorkDone(0, 10, 1.0), WorkDone(1, 10, 1.0, dropped=1)], True),
    ],
)
def test_who_is_unequal(rows: list[WorkDone], expected: bool) -> None:
    assert unequal(rows) is expected


def test_means() -> None:
    two = [WorkDone(2, 10, 1.0, 2.0, 3.0, 0.5, 1), WorkDone(2, 13, 2.0, 2.0, 5.0, 1.5, 4)]
    assert mean_of(two) == WorkDone(2, 12, 1.5, 2.0, 4.0, 1.0, 2)
