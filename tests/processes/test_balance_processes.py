"""Balanced work in real processes: what the simulation gives, from the same measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from balanced import by_batch, by_steps, measured_as_given
from pool import Pool
from runs import one, same_run, train
from swarmstep import simulate


@pytest.mark.parametrize("gradients", [True, False])
def test_by_batch_equals_simulation_bitwise(pool: Pool, gradients: bool) -> None:
    assert pool.run(by_batch, gradients, workers=3) == simulate(lambda comm: by_batch(comm, gradients), 3)


def test_by_steps_equals_simulation(pool: Pool) -> None:
    assert pool.run(by_steps, workers=3) == simulate(by_steps, 3)


@pytest.mark.parametrize(("balance", "strategy"), [("batch", "synchronous"), ("steps", "diloco")])
def test_a_run_equals_simulation_bitwise(pool: Pool, tmp_path: Path, balance: str, strategy: str) -> None:
    fields = {"strategy": strategy, "balance": balance, "speeds": "1,2,4", "steps": 30}
    train(fields, tmp_path / "sim")
    pool.run(measured_as_given, fields, str(tmp_path / "gloo"), {}, workers=3)
    same_run(tmp_path / "sim", tmp_path / "gloo")


@pytest.mark.parametrize("balance", [pytest.param("batch", marks=pytest.mark.slow), "steps"])
def test_paced_workers_get_what_they_manage(pool: Pool, tmp_path: Path, balance: str) -> None:
    """Real measurements, the same on all ranks: a worker made 40 times as slow has less than its equal share."""
    fields: dict[str, Any] = {"balance": balance, "speeds": "1,1,40", "backend": "gloo", "batch": 12, "every": 5}
    fields |= {"strategy": "local-sgd", "steps": 40}
    found = pool.run(one, "classes", fields, str(tmp_path), {}, workers=3)
    shares = [summary["shares"] for summary in found]
    equal = fields["batch"] if balance == "batch" else fields["every"]
    assert shares[0] == shares[1] == shares[2]
    assert sum(shares[0]) == 3 * equal
    assert shares[0][2] < equal


def test_a_balanced_run_may_change_between_simulation_and_processes(pool: Pool, tmp_path: Path) -> None:
    fields = {"strategy": "local-sgd", "balance": "steps", "speeds": "1,2,4", "steps": 42}
    train(fields, tmp_path / "whole")
    out = tmp_path / "parts"
    train(fields, out, stop_at=6)
    said = pool.run(measured_as_given, fields, str(out), {"stop_at": 25, "resume": True}, workers=3)
    assert all(answer == said[0] for answer in said)
    assert "stopped at step 27 of 42, on all ranks" in said[0]["interrupted"]  # at the end of the round
    train(fields, out, resume=True)
    same_run(tmp_path / "whole", out)
