"""Runs in real processes: what the simulation gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pool import Pool
from runs import one, same_run, train


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "independent"},
        {"strategy": "local-sgd"},
        {"strategy": "pso-ps"},
        {"strategy": "synchronous"},
        {"strategy": "swarm", "delay": 2, "codec": "int8"},
        {"strategy": "diloco", "delay": 1, "mix": 0.5, "fragments": 3},
        {"strategy": "local-sgd", "sparse": "1:2,0.01", "codec": "nm:2:4"},
        {
            "strategy": "diloco",
            "optimizer": "mt-dao",
            "optimizer_state": "slow_avg=2",
            "codec": "sparseloco:4:clip",
        },
        {"strategy": "local-sgd", "regularizer": "localdrop:lam=0.01,head=2,every=3", "codec": "rank:1"},
    ],
    ids=str,
)
def test_processes_equal_simulation(options: dict[str, Any], pool: Pool, tmp_path: Path) -> None:
    fields = {**options, "fault": "noise:1:0.001"}
    train(fields, tmp_path / "sim")
    pool.run(one, "classes", fields, str(tmp_path / "gloo"), {}, workers=3)
    same_run(tmp_path / "sim", tmp_path / "gloo")


def test_text_with_two_optimizers_equals_simulation(pool: Pool, tmp_path: Path) -> None:
    fields = {"strategy": "diloco", "shards": "contiguous", "codec": "int8"}
    train(fields, tmp_path / "sim", "text")
    pool.run(one, "text", fields, str(tmp_path / "gloo"), {}, workers=3)
    same_run(tmp_path / "sim", tmp_path / "gloo")


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "swarm"},
        {"strategy": "diloco", "optimizer": "sgd", "control_variates": True, "proximal": "50,4"},
    ],
    ids=["swarm", "diloco"],
)
def test_an_objective_with_a_dual_equals_simulation(pool: Pool, tmp_path: Path, fields: dict[str, Any]) -> None:
    train(fields, tmp_path / "sim", "rare")
    pool.run(one, "rare", fields, str(tmp_path / "gloo"), {}, workers=3)
    same_run(tmp_path / "sim", tmp_path / "gloo")


def test_a_run_may_change_between_simulation_and_processes(pool: Pool, tmp_path: Path) -> None:
    fields: dict[str, Any] = {}
    train(fields, tmp_path / "whole")
    out = tmp_path / "parts"
    train(fields, out, stop_at=3)
    said = pool.run(one, "classes", fields, str(out), {"stop_at": 9, "resume": True}, workers=3)
    assert all(answer == said[0] for answer in said)
    assert "stopped at step 9 of 14, on all ranks; go on with: swarmstep train --resume" in said[0]["interrupted"]
    train(fields, out, resume=True)
    same_run(tmp_path / "whole", out)


def test_fast_sums_are_close(pool: Pool, tmp_path: Path) -> None:
    fields = {"strategy": "local-sgd", "fast_sums": True}
    train(fields, tmp_path / "sim")
    pool.run(one, "classes", fields, str(tmp_path / "fast"), {}, workers=3, exact=False)
    exact, fast = (load_file(tmp_path / name / "model.safetensors") for name in ("sim", "fast"))
    assert all(torch.allclose(exact[name].float(), fast[name].float(), atol=1e-5) for name in exact)
