"""A real etcd with TLS, certificates of clients and passwords, as the store of a run."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from certificates import Authority
from etcd_cluster import ETCD, free_ports, needs_etcd
from swarmstep.comm import etcd
from swarmstep.comm.etcd import EtcdStore
from swarmstep.comm.etcd_access import tls_access
from swarmstep.comm.store import EtcdAddress, store_at
from swarmstep.errors import UsageError
from tests.processes.test_store import history

pytestmark = [pytest.mark.slow, needs_etcd]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def client(authority: Authority) -> dict[str, str]:
    """What the environment of a machine that may use the etcd says."""
    certificate, key = authority.issue("client", named=False)
    files = {"CACERT": authority.certificate, "CERT": certificate, "KEY": key}
    return {f"ETCDCTL_{name}": str(path) for name, path in files.items()}


@pytest.fixture(scope="module")
def endpoint(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    assert ETCD
    certificate, key = authority.issue("server")
    port, peer = free_ports(2)
    url, between = f"https://127.0.0.1:{port}", f"http://127.0.0.1:{peer}"
    command = [
        ETCD,
        "--data-dir",
        str(tmp_path_factory.mktemp("etcd")),
        "--log-level",
        "error",
        "--bcrypt-cost",
        "4",
    ]
    command += ["--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", between]
    command += ["--initial-advertise-peer-urls", between, "--initial-cluster", f"default={between}"]
    command += ["--cert-file", str(certificate), "--key-file", str(key)]
    command += ["--client-cert-auth", "--trusted-ca-file", str(authority.certificate)]
    process = subprocess.Popen(command)
    yield f"127.0.0.1:{port}"
    process.kill()
    process.wait()


def store(endpoint: str, environ: dict[str, str], patience: float = 30.0, run: str = "run") -> Any:
    return EtcdStore([endpoint], run, patience, tls_access(environ))


def test_it_is_a_store(endpoint: str, client: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in client.items():
        monkeypatch.setenv(name, value)
    address = store_at(f"etcds://{endpoint}/history")
    assert str(address) == f"etcds://{endpoint}/history"
    assert isinstance(address, EtcdAddress)
    stores: list[Any] = [address.connect(30.0) for _ in range(2)]
    assert stores[0]._connection.sock.version() == "TLSv1.3"
    found, expected = history(3, 40, stores)
    assert found == expected


def test_without_a_certificate_or_with_a_strange_one_it_cannot_be_used(
    endpoint: str, client: dict[str, str], tmp_path: Path
) -> None:
    store(endpoint, client)  # it is up
    certificate, key = Authority(tmp_path / "theirs").issue("client")
    ours = {"ETCDCTL_CACERT": client["ETCDCTL_CACERT"]}
    strange = {**ours, "ETCDCTL_CERT": str(certificate), "ETCDCTL_KEY": str(key)}
    for environ in (ours, strange):
        with pytest.raises(RuntimeError, match="no answer within 1 s") as refused:
            store(endpoint, environ, 1.0)
        assert isinstance(refused.value.__cause__, (ssl.SSLError, ConnectionError))
    with pytest.raises(RuntimeError, match="no answer within 1 s"):
        EtcdStore([endpoint], "run", 1.0)  # plain HTTP


def test_a_false_etcd_is_not_asked(endpoint: str, client: dict[str, str], tmp_path: Path) -> None:
    """Its certificate is of another authority: it gets no request, and no password."""
    other = {**client, "ETCDCTL_CACERT": str(Authority(tmp_path / "theirs").certificate), "ETCDCTL_USER": "a:b"}
    with pytest.raises(RuntimeError, match="certificate verify failed"):
        store(endpoint, other, 1.0)


def allow(admin: Any, name: str, password: str, prefix: str) -> None:
    """Let a user use the keys of one run; afterwards all have to say who they are."""
    end = prefix[:-1] + chr(ord(prefix[-1]) + 1)
    keys = {"key": etcd._text(prefix.encode()), "range_end": etcd._text(end.encode()), "permType": "READWRITE"}
    for what, body in (
        ("role/add", {"name": "root"}),
        ("user/add", {"name": "root", "password": "of the test"}),
        ("user/grant", {"user": "root", "role": "root"}),
        ("user/add", {"name": name, "password": password}),
        ("role/add", {"name": name}),
        ("role/grant", {"name": name, "perm": keys}),
        ("user/grant", {"user": name, "role": name}),
        ("enable", {}),
    ):
        try:
            admin._call(f"auth/{what}", body)
        except RuntimeError as error:
            if "already exists" not in str(error):  # it was sent twice, since the first answer came late
                raise


def test_a_user_has_the_keys_of_one_run(endpoint: str, client: dict[str, str]) -> None:
    admin = store(endpoint, client)
    allow(admin, "mine", "a word", "mine")
    try:
        own = store(endpoint, {**client, "ETCDCTL_USER": "mine:a word"}, run="mine")
        found, expected = history(4, 20, [own])
        assert found == expected
        own._headers = {"Authorization": "expired"}
        assert own.add("n", 1) == own.add("n", 0)
        with pytest.raises(RuntimeError, match="permission denied"):
            store(endpoint, {**client, "ETCDCTL_USER": "mine:a word"}, run="other")
        with pytest.raises(RuntimeError, match="invalid user ID or password"):
            store(endpoint, {**client, "ETCDCTL_USER": "mine:another"}, run="mine")
        with pytest.raises(RuntimeError, match="etcd"):
            store(endpoint, client, 1.0, run="mine")
    finally:
        store(endpoint, {**client, "ETCDCTL_USER": "root:of the test"}, run="x")._call("auth/disable", {})


@pytest.mark.parametrize(
    "environ",
    [
        {"ETCDCTL_CACERT": "/nowhere"},
        {"ETCDCTL_CERT": "/nowhere"},
        {"ETCDCTL_CERT": "/nowhere", "ETCDCTL_KEY": "/nowhere"},
        {"ETCDCTL_CACERT": __file__},
        {"ETCDCTL_USER": "name"},
    ],
)
def test_what_is_wrong_with_the_environment_is_said(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"^etcds: .*ETCDCTL_CERT"):
        tls_access(environ)
