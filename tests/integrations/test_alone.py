"""What all integrations share: the hidden environment, folders, and what is said where a library is missing."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys

import pytest

from swarmstep import simulate
from swarmstep.errors import UsageError
from swarmstep.integrations.alone import alone, check_alone, check_folders


def test_the_other_workers_are_hidden_and_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "7"}
    there |= {"SLURM_NTASKS": "4", "OMP_NUM_THREADS": "1"}
    for name, value in there.items():
        monkeypatch.setenv(name, value)
    with contextlib.suppress(ZeroDivisionError), alone():
        assert {name for name in there if name in os.environ} == {"OMP_NUM_THREADS"}
        raise ZeroDivisionError
    assert {name: os.environ[name] for name in there} == there


def test_several_processes_or_devices_are_refused() -> None:
    check_alone("it", 1, 0)  # a CPU is no device
    with pytest.raises(UsageError, match="it works with 2 processes"):
        check_alone("it", 2)
    with pytest.raises(UsageError, match="it works with 8 devices in one process"):
        check_alone("it", 1, 8)


def test_workers_that_share_a_folder_are_named() -> None:
    simulate(lambda comm: check_folders(f"out/{comm.rank}", comm), 3)
    simulate(lambda comm: check_folders(None, comm), 3)
    with pytest.raises(UsageError, match=r"ranks 1 and 2 .* to the same folder \(rank \d: .*out"):
        simulate(lambda comm: check_folders("out" if comm.rank else None, comm), 3)


@pytest.mark.parametrize(
    ("module", "missing"),
    [("transformers", "transformers"), ("lightning", "lightning.pytorch"), ("accelerate", "accelerate")],
)
def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.delitem(sys.modules, f"swarmstep.integrations.{module}", raising=False)
    with pytest.raises(UsageError, match=rf'pip install "swarmstep\[{module}\]"'):
        importlib.import_module(f"swarmstep.integrations.{module}")
