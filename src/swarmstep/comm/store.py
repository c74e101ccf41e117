"""The store through which processes find each other and decide: what is asked of it, and where one is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

from swarmstep.comm import process_groups
from swarmstep.comm.etcd import EtcdStore
from swarmstep.comm.etcd_access import Access, tls_access
from swarmstep.errors import UsageError

ETCD, SECURED = "etcd://", "etcds://"  # without and with TLS
ABSENT = "\0"  # is never a value


class Store(Protocol):
    """Texts by their keys, the same for all who ask; one connection to it.

    torch's TCPStore is one (its server is one process), `swarmstep.comm.etcd.EtcdStore` another. Each call raises
    RuntimeError where there is no answer in time. It may have been carried out then, once, and no second time.
    """

    def add(self, key: str, amount: int, /) -> int:
        """Add to a counter, which begins at 0; return its value."""
        ...

    def set(self, key: str, value: str, /) -> None:
        """Set a key that nobody else sets at the same time: without an answer it may be set again later."""
        ...

    def get(self, key: str, /) -> bytes:
        """Return the value of a key; wait for it if there is none yet."""
        ...

    def check(self, keys: list[str], /) -> bool:
        """Return whether all of these keys have values."""
        ...

    def multi_get(self, keys: list[str], /) -> list[bytes]:
        """Return the values of keys; wait for those that have none yet."""
        ...

    def compare_set(self, key: str, expected: str, desired: str, /) -> bytes:
        """Set a key that has the expected value ("": none); return the value that it has then.

        `expected` where there is no value and one was expected.
        """
        ...

    def delete_key(self, key: str, /) -> bool:
        """Remove a key; return whether it had a value."""
        ...

    def num_keys(self) -> int:
        """Return how many keys there are."""
        ...


class Address(Protocol):
    """Where a store is."""

    @property
    def host(self) -> str:
        """The machine towards which the workers' own addresses are found."""
        ...

    @property
    def advice(self) -> str:
        """What has probably happened, or what to do, where it cannot be reached."""
        ...

    def connect(self, patience: float) -> Store:
        """Return a new connection; raise RuntimeError if there is none within `patience` seconds."""
        ...


class TcpAddress(NamedTuple):
    """The store that one process serves: torch's TCPStore."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def advice(self) -> str:
        """What has probably happened, or what to do, where it cannot be reached."""
        return "the process that started the run has probably ended"

    def connect(self, patience: float) -> Store:
        """Return a new connection; raise RuntimeError if there is none within `patience` seconds."""
        return process_groups.connect(self.host, self.port, patience)


class EtcdAddress(NamedTuple):
    """The part of an etcd that belongs to one run.

    Args:
        endpoints: HOST:PORT of each of etcd's machines.
        run: the name of the run.
        secured: by TLS, with what the environment gives (`etcd_access.tls_access`).
    """

    endpoints: tuple[str, ...]
    run: str
    secured: bool = False

    def __str__(self) -> str:
        return f"{SECURED if self.secured else ETCD}{','.join(self.endpoints)}/{self.run}"

    @property
    def host(self) -> str:
        """The machine towards which the workers' own addresses are found."""
        return self.endpoints[0].rpartition(":")[0].strip("[]")

    @property
    def advice(self) -> str:
        """What has probably happened, or what to do, where it cannot be reached."""
        return "see that a majority of etcd's machines is up (etcdctl endpoint status)"

    def connect(self, patience: float) -> EtcdStore:
        """Return a new connection; raise RuntimeError if there is none within `patience` seconds.

        Raises:
            UsageError: the environment does not say how TLS is to be used.
        """
        access = tls_access(os.environ) if self.secured else Access()
        return EtcdStore(self.endpoints, self.run, patience, access)


def peek(store: Store, key: str) -> str:
    """Return the value of a key, without waiting for one; "" if there is none."""
    return store.compare_set(key, ABSENT, ABSENT).decode().removeprefix(ABSENT)


def keys_of(store: Store) -> list[str]:
    """Return the keys that there are; none where a store cannot list them, as the TCPStore of an older torch."""
    listed: Callable[[], list[str]] | None = getattr(store, "list_keys", None)
    return listed() if listed else []


def forget(store: Store, keys: Iterable[str], prefix: str) -> None:
    """Remove those of a store's keys that begin like this; an etcd does it at once."""
    if isinstance(store, EtcdStore):
        store.delete_prefix(prefix)
        return
    for key in keys:
        if key.startswith(prefix):
            store.delete_key(key)


def store_at(text: str) -> TcpAddress | EtcdAddress:
    """Return the address that a text describes: HOST:PORT, or etcd://HOST:PORT,HOST:PORT/RUN, or etcds://...

    Raises:
        UsageError: it is none.
    """
    places, _, run = text.removeprefix(ETCD).removeprefix(SECURED).partition("/")
    endpoints = tuple(places.split(","))
    for place in endpoints:
        host, _, port = place.rpartition(":")
        if not _is_name(host.strip("[]")) or not port.isdecimal() or int(port) > 65535:
            example = f"{ETCD}10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/RUN, or HOST:PORT"
            raise UsageError(f"the store {text!r}: expected {example}, found {place!r}")
    if text.startswith((ETCD, SECURED)):
        return EtcdAddress(endpoints, run or "swarmstep", text.startswith(SECURED))
    host, _, port = text.rpartition(":")
    return TcpAddress(host, int(port))


def _is_name(host: str) -> bool:
    """Return whether a text can be the name or address of a machine: a resolver takes it."""
    try:
        return bool(host.encode("idna"))
    except UnicodeError:  # an empty part, or one that is too long
        return False
