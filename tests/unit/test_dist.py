"""Groups of processes, as far as it takes none: the environment, and the heartbeat."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch.distributed as dist

from launched import SOON
from swarmstep import DistComm
from swarmstep.comm.heartbeat import PERIOD, Heartbeat
from swarmstep.comm.process_groups import serve_store
from swarmstep.comm.rendezvous import VARIABLES
from swarmstep.errors import CommError, PeerLost, UsageError
from swarmstep.runtime.program import MANY, run


def test_an_address_that_this_machine_lacks_is_named() -> None:
    """As 127.0.0.1 where only IPv6 is set up."""
    expected = (
        r"^192\.0\.2\.1: .*: the processes of a run meet at this address here;.* or train in one process with"
    )
    with pytest.raises(CommError, match=expected):
        serve_store("192.0.2.1")


@pytest.mark.parametrize("missing", VARIABLES)
def test_from_env_names_what_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv(missing)
    with pytest.raises(UsageError, match=f"from_env: {missing} not set in the environment; start the"):
        DistComm.from_env()


def test_from_env_names_everything_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"):
        DistComm.from_env()


def test_from_env_refuses_the_port_0_that_torchrun_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its workers would wait for each other at a port that does not exist."""
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"MASTER_PORT=0: expected the port .*--standalone"):
        DistComm.from_env()


@pytest.mark.parametrize(("variable", "said"), [("SLURM_STEP_NUM_TASKS", True), ("SLURM_NTASKS", False)])
def test_run_says_that_processes_without_a_rank_simulate_each(
    variable: str, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`SLURM_NTASKS` also stands in the environment of a batch script's own commands, of which there is one."""
    for name in ("SWARMSTEP_WORKER", "RANK", *MANY):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "4")
    assert run(lambda comm: comm.size, 2) == 2
    expected = "swarmstep: run: RANK is not set, so this process, one of 4, simulates 2 workers by itself; "
    assert capsys.readouterr().err.startswith(expected) == said


def test_a_heartbeat_knows_nobody_is_silent_before_it_has_listened() -> None:
    store, port = serve_store()
    hearts = [
        Heartbeat(dist.TCPStore("127.0.0.1", port, is_master=False), str(rank), ["0", "1"]) for rank in range(2)
    ]
    assert hearts[0].silent(0.0) == []
    for heart in hearts:
        heart.start()
    until(lambda: hearts[0]._answered > hearts[0]._seen[1] - 1 and hearts[0]._counts[1] != b"")
    assert hearts[0].silent(5.0) == []
    hearts[1].stop()
    until(lambda: hearts[0].silent(2 * PERIOD) == [1])
    assert hearts[0].agree_on_lost([1]) == [1]
    assert hearts[1].agree_on_lost([0]) == [1]  # what the first said
    hearts[0].stop()
    assert hearts[0].error is None
    assert not hearts[0].store_silent(0.0)
    del store


def until(condition: Any) -> None:
    """Wait for something that another thread brings about."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_losing_somebody_is_an_error_of_the_group() -> None:
    assert issubclass(PeerLost, CommError)
