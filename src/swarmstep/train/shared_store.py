"""Elastic runs whose store is an etcd: every machine starts the same command, and none of them is special."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

from swarmstep.comm.secure.auth import is_loopback
from swarmstep.comm.store import EtcdAddress, store_at
from swarmstep.console import say
from swarmstep.elastic.keys import OVER, STOP
from swarmstep.errors import CommError, UsageError
from swarmstep.launch.processes import Place
from swarmstep.train.environment import SETTINGS
from swarmstep.train.join import PUBLISHED, interface_towards, needed_secret

SUPERVISORS = "swarmstep/supervisors"  # in the store: how many machines take part
OWN = ("workload", "data", "workers")  # what each machine may set for itself
CONNECT = 30.0  # seconds for the store to answer


def etcd_at(text: str) -> EtcdAddress:
    """Return the etcd that --store names.

    Raises:
        UsageError: it names none, or there is no secret while it is on other machines.
    """
    address = store_at(text)
    if not isinstance(address, EtcdAddress):
        raise UsageError(
            f"--store {text}: expected etcd://HOST:PORT,HOST:PORT,HOST:PORT or etcd://.../RUN; with TLS: etcds://..."
        )
    if not _is_here(address):
        needed_secret("--store")
    return address


def _is_here(address: EtcdAddress) -> bool:
    return all(is_loopback(place.rpartition(":")[0].strip("[]")) for place in address.endpoints)


@contextlib.contextmanager
def attached(text: str, settings: Mapping[str, Any]) -> Generator[Place]:
    """Take part in the run that an etcd holds, or begin it there; yield the place of this machine's workers.

    Whoever is there first says what the run's settings are. The last one to leave a run that is over removes its
    keys.

    Args:
        text: of the etcd.
        settings: of the run, JSON; those in OWN may differ from machine to machine.

    Raises:
        UsageError: the run has other settings, or is over.
        CommError: the etcd does not answer.
    """
    address = etcd_at(text)
    environment = {} if _is_here(address) else {"GLOO_SOCKET_IFNAME": interface_towards(address.host)}
    try:
        store = address.connect(CONNECT)
        if store.add(OVER, 0) or store.add(STOP, 0):
            raise UsageError(
                f"--store {address}: the run is over or stops; give the next one another name, such as "
                f"{address._replace(run=address.run + '-2')}"
            )
        said = json.dumps(settings)
        found = store.compare_set(PUBLISHED, "", said).decode()
        _check_same(address, json.loads(found), json.loads(said))
        others = store.add(SUPERVISORS, 1) - 1
    except RuntimeError as error:
        raise CommError(f"{address}: {error}; {address.advice}") from error
    say(f"{address}: {f'{others} other machines or commands take part' if others else 'the run begins here'}")
    try:
        yield Place(environment={**environment, SETTINGS: found}, store=str(address))
    finally:
        with contextlib.suppress(RuntimeError):  # the etcd is gone: its keys stay
            if store.add(SUPERVISORS, -1) == 0 and (store.add(OVER, 0) or store.add(STOP, 0)):
                store.delete_prefix("")


def program_settings(program: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a program of the user's own has to have alike on all machines: its text, and its arguments."""
    text = hashlib.sha256(program.read_bytes()).hexdigest()
    return {"program": {"SHA-256": text, "arguments": [*arguments]}}


def _check_same(address: EtcdAddress, run: dict[str, Any], own: dict[str, Any]) -> None:
    """Raise UsageError, which names the field, where this machine's settings are not the run's."""
    for part in {**run, **own}:
        theirs, mine = run.get(part, {}), own.get(part, {})
        for name in {**theirs, **mine}:
            if name not in OWN and theirs.get(name) != mine.get(name):
                raise UsageError(
                    f"--store {address}: {part}, {name}: expected {theirs.get(name)!r}, which the run has, found "
                    f"{mine.get(name)!r}; give the same, or another name for a run of its own (etcd://.../NAME)"
                )
