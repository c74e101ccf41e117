"""Large transfers of our own: how their way is chosen."""

from __future__ import annotations

import pytest
import torch

from swarmstep.comm.p2p import FLOOR, Route


@pytest.mark.parametrize(
    ("costs", "along_chain"),
    [([[2.0, 1.0], [2.0, 1.0]], True), ([[1.0, 2.0], [1.0, 2.0]], False), ([[1.0, 3.0], [5.0, 4.0]], True)],
)
def test_the_slowest_rank_counts(costs: list[list[float]], along_chain: bool) -> None:
    route = Route()
    x = torch.empty(FLOOR, dtype=torch.uint8)
    assert route.choice(x, 3) is None
    route.choose(torch.tensor(costs, dtype=torch.float64))
    assert route.choice(x, 3) is along_chain
    assert route.choice(x[:-1], 3) is False
    assert route.choice(torch.empty(FLOOR, dtype=torch.uint8, device="meta"), 3) is False  # not gloo's
