"""The spiking workload in real processes, and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runs import weights
from swarmstep.cli import main

pytest.importorskip("snntorch")
pytestmark = pytest.mark.usefixtures("forked")


@pytest.mark.slow
def test_real_processes_and_resuming_give_the_same_weights(tmp_path: Path) -> None:
    words = ["train", "spiking", "--workers", "2", "--steps", "8", "--every", "2", "--eval-every", "8"]
    assert main([*words, "--out", str(tmp_path / "sim")]) == 0
    assert main([*words, "--out", str(tmp_path / "gloo"), "--backend", "gloo"]) == 0
    assert main([*words, "--out", str(tmp_path / "stopped"), "--stop-at", "3"]) == 130
    assert main(["train", "--resume", str(tmp_path / "stopped")]) == 0
    assert weights(tmp_path / "sim") == weights(tmp_path / "gloo") == weights(tmp_path / "stopped")
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("sim", "gloo", "stopped")]
    assert len({summary["test_hidden_rate"] for summary in summaries}) == 1
