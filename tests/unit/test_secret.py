"""Where the secret comes from, where one is needed, and members that prove to know it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs import OTHER, SECRET, proving
from swarmstep import Comm, simulate
from swarmstep.comm.secure.auth import check_address, is_loopback, prove, secret_of
from swarmstep.errors import UsageError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.touch(0o600)
    file.write_bytes(b"\n " + SECRET + b" \n")
    return file


def test_the_secret_of_a_file(file: Path) -> None:
    assert secret_of({}) is None
    assert secret_of({"SWARMSTEP_SECRET": f" {SECRET.decode()}\n"}) == SECRET
    both = {"SWARMSTEP_SECRET_FILE": str(file), "SWARMSTEP_SECRET": OTHER.decode()}
    assert secret_of(both) == SECRET
    file.chmod(0o400)
    assert secret_of(both) == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_that_others_may_use_is_refused(file: Path, mode: int) -> None:
    file.chmod(mode)
    with pytest.raises(UsageError, match=f"^SWARMSTEP_SECRET_FILE: {file} has mode {mode:o}.*chmod 600") as raised:
        secret_of({"SWARMSTEP_SECRET_FILE": str(file)})
    assert SECRET.decode() not in str(raised.value)


def test_secrets_that_are_none(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"fifteen letters  ")
    for environment in (
        {"SWARMSTEP_SECRET_FILE": str(file)},
        {"SWARMSTEP_SECRET": "fifteen letters  "},
    ):
        with pytest.raises(UsageError, match="at least 16 bytes, found 15") as raised:
            secret_of(environment)
        assert "letters" not in str(raised.value)
    with pytest.raises(UsageError, match="at least 16 bytes, found 0"):
        secret_of({"SWARMSTEP_SECRET": ""})
    for path in (tmp_path / "none", tmp_path, ""):
        with pytest.raises(UsageError, match=r"^SWARMSTEP_SECRET_FILE: .*: (No such file|Is a directory)"):
            secret_of({"SWARMSTEP_SECRET_FILE": str(path)})


@given(st.tuples(*[st.integers(0, 255)] * 4))
def test_the_whole_of_127_is_loopback(parts: tuple[int, ...]) -> None:
    assert is_loopback(".".join(map(str, parts))) == (parts[0] == 127)


def test_names_of_loopback() -> None:
    for host in ("localhost", "LocalHost", "localhost.", "node.localhost", "::1", "[::1]", "0:0:0:0:0:0:0:1"):
        assert is_loopback(host), host
    for host in (
        "",
        "0.0.0.0",
        "::",
        "::2",
        "localhost.example.org",
        "notlocalhost",
        "node1",
        "127.0.0.1.example",
    ):
        assert not is_loopback(host), host


def test_an_address_that_others_reach_needs_a_secret() -> None:
    check_address("127.0.0.1", None)
    check_address("10.0.0.1", SECRET)
    with pytest.raises(
        UsageError, match=r"^'10.0.0.1' is not a loopback address.* SWARMSTEP_SECRET_FILE .*16 bytes"
    ):
        check_address("10.0.0.1", None)


@given(size=st.integers(1, 6), data=st.data())
def test_members_name_those_who_do_not_know_the_secret(size: int, data: st.DataObject) -> None:
    others = sorted(data.draw(st.sets(st.integers(0, size - 1))))
    for rank, said in enumerate(simulate(lambda comm: proving(comm, others), size)):
        wrong = [r for r in range(size) if (r in others) != (rank in others)]
        assert bool(said) == bool(wrong)
        named = said.partition(": rank")[2].partition(" did not")[0].removeprefix("s ").replace(" ", "")
        assert named == ",".join(map(str, wrong))


def replacing(comm: Comm, row: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Have rank 1 say row(all rows, how many gathers before) instead of its own, to all alike."""
    honest, calls = comm.gather, itertools.count()

    def gather(x: torch.Tensor) -> torch.Tensor:
        rows = honest(x).clone()
        rows[1] = row(rows, next(calls))
        return rows

    comm.gather = gather


def test_who_repeats_what_another_rank_says_is_named() -> None:
    def train(comm: Comm) -> str:
        replacing(comm, lambda rows, call: rows[0])
        return proving(comm, [])

    assert all("rank 1 did not" in said for said in simulate(train, 3))


def test_who_repeats_what_was_said_before_is_named() -> None:
    def train(comm: Comm) -> tuple[str, str]:
        before: list[torch.Tensor] = []

        def row(rows: torch.Tensor, call: int) -> torch.Tensor:
            before.append(rows[1].clone())
            return before[call % 2]

        replacing(comm, row)
        return proving(comm, []), proving(comm, [])

    for first, second in simulate(train, 3):
        assert first == ""
        assert "rank 1 did not" in second


def test_prove_refuses_a_short_secret() -> None:
    with pytest.raises(UsageError, match="prove: expected a secret of at least 16 bytes, found 5"):
        simulate(lambda comm: prove(comm, b"short"), 2)
