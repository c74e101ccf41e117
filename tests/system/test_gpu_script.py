"""benchmarks/gpu.sh where there is no GPU: it says so, and its checks work on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.sh"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *options], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so_and_claims_nothing() -> None:
    done = run()
    assert (done.returncode, done.stdout) == (
        0,
        "no CUDA device here: nothing was checked, and nothing is claimed\n",
    )


@pytest.mark.slow
def test_on_the_cpu_simulation_and_processes_are_equal_bit_for_bit() -> None:
    done = run("--device", "cpu", "--only", "codec int8")
    assert done.returncode == 0, done.stdout + done.stderr
    expected = "ok      codec int8: the device differs from the CPU by 0.0e+00, processes from it by 0.0e+00"
    assert expected in done.stdout.splitlines()


@pytest.mark.slow
def test_a_failed_check_is_reported_and_the_exit_code_says_so(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nif 'RANK' in os.environ: os._exit(9)\n")
    done = subprocess.run(
        [SCRIPT, "--device", "cpu", "--only", "codec int8"],
        env={
            **os.environ,
            "PYTHON": sys.executable,
            "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "FAILED  codec int8" in done.stdout
