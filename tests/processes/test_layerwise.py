"""Networks that grow among real processes: what the simulation gives, and what a lost worker does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from launched import Launched
from layers import grow, layers
from pool import Pool
from runs import same_run
from swarmstep import DistComm
from swarmstep.errors import PeerLost
from swarmstep.layerwise import Builder, SSFNSettings, ring


@pytest.mark.parametrize("fields", [{}, {"graph": "ring:2"}, {"graph": "complete"}], ids=str)
def test_processes_equal_simulation(fields: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    grow(fields, tmp_path / "sim")
    pool.run(layers, fields, str(tmp_path / "gloo"), {}, workers=3)
    same_run(tmp_path / "sim", tmp_path / "gloo")


def test_a_run_may_change_between_simulation_and_processes(pool: Pool, tmp_path: Path) -> None:
    fields = {"graph": "ring:2"}
    grow(fields, tmp_path / "whole")
    out = tmp_path / "parts"
    grow(fields, out, stop_at=1)
    said = pool.run(layers, fields, str(out), {"stop_at": 2, "resume": True}, workers=3)
    assert all(answer == said[0] for answer in said)
    grow(fields, out, resume=True)
    same_run(tmp_path / "whole", out)


def grow_until_lost(end: Any) -> None:
    comm = DistComm.from_env("gloo", exact=True, silence=3.0)
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(comm.rank))
    settings = SSFNSettings(width=8, iterations=10**9, tolerance=0.0)
    builder = Builder(settings, x, x[:, :2], comm, ring(3))
    end.send("ready")
    try:
        builder.add()
    except PeerLost as error:
        end.send(str(error))


@pytest.mark.slow
def test_a_killed_neighbour_is_named() -> None:
    with Launched(grow_until_lost, 3) as world:
        for rank in range(3):
            assert world.hears(rank) == "ready"
        world.signals(2, signal.SIGKILL)
        assert all("rank 2" in world.hears(rank) for rank in (0, 1))
