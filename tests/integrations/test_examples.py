"""The examples of docs/integrations.md, as a user starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "library", "said"),
    [
        ("trainer", "transformers", "120 steps, 6 rounds"),
        ("lightning", "lightning", "160 steps, 10 rounds"),
        ("accelerate", "accelerate", "step 200: losses"),
        ("peft", "peft", "step 50: loss"),
    ],
)
def test_an_example_under_torchrun(tmp_path: Path, name: str, library: str, said: str) -> None:
    pytest.importorskip(library)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    ran = subprocess.run(
        [*torchrun, str(EXAMPLES / f"with_{name}.py")],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert said in ran.stdout
