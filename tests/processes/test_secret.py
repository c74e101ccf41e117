"""Real processes prove to each other that they know the secret."""

from __future__ import annotations

from jobs import proving
from pool import Pool


def test_real_processes_prove_it(pool: Pool) -> None:
    assert pool.run(proving, [], workers=3) == [""] * 3
    first, second, third = pool.run(proving, [1], workers=3)
    assert first.startswith(
        "rank 0: rank 1 did not prove to know the secret of this rank; give all machines the same"
    )
    assert second.startswith("rank 1: ranks 0, 2 did not")
    assert third.startswith("rank 2: rank 1 did not")
    assert "\n" not in first
