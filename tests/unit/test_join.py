"""Joining from another machine: options, addresses, interfaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmstep.cli import main
from swarmstep.comm.dist import DistComm
from swarmstep.comm.interfaces import interface_towards
from swarmstep.comm.process_groups import LOOPBACK
from swarmstep.errors import UsageError
from swarmstep.train.join import address

SECRET = "correct horse battery staple"


SECRETS = ("SWARMSTEP_SECRET", "SWARMSTEP_SECRET_FILE")


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (*SECRETS, "GLOO_SOCKET_IFNAME", "RANK", "WORLD_SIZE", "SWARMSTEP_WORKER"):
        monkeypatch.delenv(name, raising=False)


def test_an_etcd_on_other_machines_needs_a_secret(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--elastic", "local", "--store", "etcd://10.0.0.1:2379"]) == 2
    assert capfd.readouterr().err.startswith("swarmstep: --store needs a secret")


@pytest.mark.parametrize("option", ["--listen", "--join"])
def test_without_a_secret_nobody_listens_or_joins(option: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--elastic", "local", option, "10.0.0.1:29500"]) == 2
    said = capfd.readouterr().err
    assert said.startswith(
        f"swarmstep: {option} needs a secret: set SWARMSTEP_SECRET_FILE to a file of at least 16"
    )
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--listen", "10.0.0.1:29500"],
            "--listen: expected --elastic local or an asynchronous method, found none",
        ),
        (["--here", "1"], "--here: goes with --listen"),
        (["--tunnel", "wireguard"], "--tunnel: goes with --listen"),
        (
            ["--strategy", "asgrad", "--backend", "gloo", "--listen", "127.0.0.1:0", "--here", "5"],
            "--here: expected 0 to 4, the workers, found 5",
        ),
        (["--listen", "10.0.0.1", "--elastic", "local"], "--listen: expected HOST:PORT, such as"),
        (["--join", "0.0.0.0:29500"], "--join 0.0.0.0:29500: expected the one address by which"),
        (["--join", "a:1", "--listen", "a:1"], "--join: goes with neither --listen nor --resume"),
        (["--join", "a:1", "--stop-at", "4"], "--stop-at: does not go with --elastic local"),
        (["--store", "etcd://a:1"], "--store: expected --elastic local, found none"),
        (["--store", "etcd://a:1", "--elastic", "torchft"], "--store: expected --elastic local, found torchft"),
        (["--store", "etcd://a", "--elastic", "local"], "the store 'etcd://a': expected etcd://10.0.0.1:2379,"),
        (["--store", "a:1", "--elastic", "local"], "--store a:1: expected etcd://HOST:PORT,HOST:PORT"),
        (["--store", "etcd://a:1", "--join", "a:1"], "--store: goes with neither --listen nor --join"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWARMSTEP_SECRET", SECRET)
    assert main(["train", "digits", *options]) == 2
    assert capfd.readouterr().err.startswith(f"swarmstep: {said}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1:29500", ("10.0.0.1", 29500)),
        ("[fd00::1]:0", ("fd00::1", 0)),
        ("host.example:1", ("host.example", 1)),
    ],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert address("--listen", text) == expected


@pytest.mark.parametrize("text", ["", ":1", "host", "host:", "host:x", "host:65536", "host:-1", "[]:1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="--join: expected HOST:PORT"):
        address("--join", text)


def test_the_interface_towards_this_machine_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface_towards("127.0.0.1") == LOOPBACK
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "wg0")
    assert interface_towards("127.0.0.1") == interface_towards("10.0.0.1") == "wg0"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", LOOPBACK)
    with pytest.raises(UsageError, match="no other machine gets there"):
        interface_towards("10.0.0.1")


def test_a_group_on_another_address_needs_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    described = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "10.0.0.254", "MASTER_PORT": "1"}
    for name, value in described.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=r"'10\.0\.0\.254' is not a loopback address and there is no secret"):
        DistComm.from_env("gloo")
