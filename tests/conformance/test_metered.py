"""What each verb costs each worker, by the formulas in the docstring of `Metered`."""

from __future__ import annotations

import pytest
import torch

from swarmstep import Comm, Metered, simulate
from swarmstep.comm.metered import Traffic
from swarmstep.errors import CommError


def costs(comm: Comm) -> dict[str, tuple[int, int]]:
    metered = Metered(comm)
    x = torch.zeros(5, dtype=torch.float64)
    found = {}
    for name, call in {
        "mean": lambda: metered.mean(x),
        "gather": lambda: metered.gather(x),
        "broadcast from 2": lambda: metered.broadcast(x, 2),
        "broadcast from 0": lambda: metered.broadcast(x, 0),
        "swap of 0 and 1": lambda: metered.permute(x, [1, 0, 2, 3]),
        "split": lambda: metered.split(0),
        "gather in pairs": lambda: metered.split(comm.rank // 2).gather(x),
    }.items():
        with metered.counting() as moved:
            call()
        found[name] = moved.sent, moved.received
    return found


def test_each_workers_share() -> None:
    found = simulate(costs, 4)
    vector = 5 * 8
    assert [f["gather"] for f in found] == [(3 * vector, 3 * vector)] * 4
    # A chain: 2 sends to 3, 3 to 0, 0 to 1.
    assert [f["broadcast from 2"] for f in found] == [(vector, vector), (0, vector), (vector, 0), (vector, vector)]
    assert [f["broadcast from 0"] for f in found] == [(vector, 0), (vector, vector), (vector, vector), (0, vector)]
    assert [f["swap of 0 and 1"] for f in found] == [(vector, vector)] * 2 + [(0, 0)] * 2
    assert [f["split"] for f in found] == [(0, 0)] * 4
    assert [f["gather in pairs"] for f in found] == [(vector, vector)] * 4
    # 2 (W-1) (n+1) b in all, spread as evenly as whole bytes go.
    means = [f["mean"] for f in found]
    assert sum(sent for sent, _ in means) == sum(received for _, received in means) == 2 * 3 * 6 * 8
    assert max(means)[0] - min(means)[0] <= 1


def test_one_worker_alone_sends_nothing() -> None:
    def train(comm: Comm) -> Traffic:
        metered = Metered(comm)
        x = torch.zeros(5)
        metered.mean(x)
        metered.gather(x)
        metered.broadcast(x, 0)
        metered.permute(x, [0])
        return metered.traffic

    assert simulate(train, 1) == [Traffic(0, 0)]


def test_what_failed_is_not_counted() -> None:
    def train(comm: Comm) -> Traffic:
        metered = Metered(comm)
        with pytest.raises(CommError):
            metered.mean(torch.zeros(3), 0.0)
        return metered.traffic

    assert simulate(train, 2) == [Traffic(0, 0)] * 2
