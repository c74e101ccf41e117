"""Elastic runs across machines: the first one listens, others join it and leave it again, all through a proxy."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any, NamedTuple

from swarmstep.comm import process_groups
from swarmstep.comm.heartbeat import Heartbeat, dead_key
from swarmstep.comm.interfaces import interface_towards, own_address
from swarmstep.comm.secure.auth import LEAST, secret_of
from swarmstep.comm.secure.proxy import Proxy
from swarmstep.comm.secure.tunnel import open_tunnel
from swarmstep.comm.store import Store
from swarmstep.console import say
from swarmstep.elastic.formation import begun
from swarmstep.elastic.supervisor import LAST_WAIT
from swarmstep.errors import CommError, UsageError
from swarmstep.launch.processes import Place
from swarmstep.network.wireguard import PrivateNetwork, check_means
from swarmstep.train.config import Config
from swarmstep.train.environment import SETTINGS
from swarmstep.workloads import Workload

PUBLISHED = "swarmstep/settings"  # in the store: the run's settings, JSON
GUESTS = "swarmstep/guests"  # in the store: how many other machines have joined so far
OWN = ("workload", "data", "workers")  # what another machine may set for itself
SILENCE = 3.0  # seconds without a sign of life after which another machine is not waited for at the end
POLL = 0.05  # seconds between two looks at the store


class Guest(NamedTuple):
    """What another machine needs for its workers.

    Args:
        config: of the run, resolved.
        place: where its workers are.
        trouble: says why this machine cannot go on in the run, if so.
    """

    config: Config
    place: Place
    trouble: Callable[[], str | None]


def address(option: str, text: str) -> tuple[str, int]:
    """Return the host and the port of a text such as 10.0.0.1:29500 or [fd00::1]:29500.

    Raises:
        UsageError: it is none, or stands for all addresses of a machine.
    """
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host[:1] + host[-1:] == "[]" else host
    if not host or not port.isdecimal() or int(port) > 65535:
        raise UsageError(f"{option}: expected HOST:PORT, such as 10.0.0.1:29500, found {text!r}")
    if host in ("0.0.0.0", "::"):
        raise UsageError(f"{option} {text}: expected the one address by which other machines reach the first one")
    return host, int(port)


@contextlib.contextmanager
def listening(
    where: tuple[str, int],
    config: Config,
    workload: Workload,
    here: int | None = None,
    tunnel: str | None = None,
) -> Generator[Place]:
    """Serve the store of a run, and a proxy for it on `where`; yield the place of this machine's workers.

    `here` is how many workers of an asynchronous run are on this machine. With a `tunnel` what workers send each
    other goes through a private network.

    At the end the other machines are waited for, as long as they give signs of life.

    Raises:
        UsageError: there is no secret, or the address is not free or not of this machine.
    """
    secret, interface = needed_secret("--listen"), interface_towards(where[0])
    if tunnel:
        check_means()
    store, port = process_groups.serve_store()
    store.set(PUBLISHED, json.dumps({**published(config, workload), "here": here, "tunnel": tunnel}))
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(contextlib.closing(Proxy(port, secret, where, say)))
        if tunnel:
            own = process_groups.connect("127.0.0.1", port, LAST_WAIT)
            interface = stack.enter_context(PrivateNetwork(secret, 0, where[0], own, _machines)).interface
        shown = f"[{proxy.host}]" if ":" in proxy.host else proxy.host
        join = f"swarmstep train {shlex.quote(config.workload)} --join {shown}:{proxy.port} --workers N"
        say(f"on other machines, with the same secret: {join}")
        yield Place(environment={"GLOO_SOCKET_IFNAME": interface}, serve=lambda: (store, port))
        _see_off(port)


def _see_off(port: int) -> None:
    """Wait until the other machines have ended: they have to see how the run ended, and may still be saving."""
    store = process_groups.connect("127.0.0.1", port, LAST_WAIT)
    names = [_guest(number) for number in range(1, store.add(GUESTS, 0) + 1)]
    heart = Heartbeat(store, "host", names)
    heart.start()
    deadline = time.monotonic() + LAST_WAIT
    while time.monotonic() < deadline:
        if not {*names} - heart.dead() - {heart.name_of(rank) for rank in heart.silent(SILENCE)}:
            break
        time.sleep(POLL)
    heart.stop()


@contextlib.contextmanager
def joined(where: tuple[str, int], patience: float) -> Generator[Guest]:
    """Join the run that listens at `where`, once it has begun.

    Args:
        where: of the proxy.
        patience: seconds that the run has to begin.

    Raises:
        UsageError: there is no secret, or no interface towards the first machine is found.
        CommError: there is no such run, or it did not let this machine in, or has not begun.
    """
    secret, interface = needed_secret("--join"), interface_towards(where[0])
    at = f"the run at {where[0]}:{where[1]}"
    over = f"{at}: the process that started it has ended, or is out of reach; resume it there, or join it again"
    with contextlib.closing(open_tunnel(where, secret)) as tunnel, contextlib.ExitStack() as stack:
        try:
            store = process_groups.connect(tunnel.host, tunnel.port, patience)
            beats = process_groups.connect(tunnel.host, tunnel.port, patience)
            text = store.get(PUBLISHED).decode()
            config = read_settings(text)
            if not config.asynchronous:  # else it begins when all have come
                _await_begin(store, at, patience)
            number = store.add(GUESTS, 1)
            name = _guest(number)
            heart = Heartbeat(beats, name, [])
            if json.loads(text).get("tunnel"):
                own = process_groups.connect(tunnel.host, tunnel.port, patience)
                private = PrivateNetwork(secret, number, own_address(where[0]), own, _machines)
                interface = stack.enter_context(private).interface
        except RuntimeError as error:
            raise CommError(over) from error
        heart.start()
        environment = {
            "GLOO_SOCKET_IFNAME": interface,
            SETTINGS: text,
            "SWARMSTEP_WORKERS": str(config.workers),
        }
        place = Place(environment=environment, serve=lambda: (store, tunnel.port))
        try:
            yield Guest(config, place, lambda: over if heart.error else None)
        finally:
            heart.stop()
            with contextlib.suppress(RuntimeError):  # the store may have gone meanwhile
                store.set(dead_key(name), "1")


def _await_begin(store: process_groups.TCPStore, at: str, patience: float) -> None:
    deadline = time.monotonic() + patience
    while not begun(store):
        if time.monotonic() > deadline:
            raise CommError(f"{at} has not begun within {patience:g} s; a longer wait is set with --patience")
        time.sleep(POLL)


def read_settings(text: str) -> Config:
    """Return the config of a run from what its first machine says, as data.

    Raises:
        CommError: the first machine has another version.
    """
    said = json.loads(text)["config"]
    odd = {f.name for f in dataclasses.fields(Config)} ^ {*said}
    if odd:
        why = f"the settings of the run to join: {min(odd)!r}: missing or unknown"
        raise CommError(f"{why}; install the same version of swarmstep on all machines")
    return Config(**said)


def workers_here(text: str) -> int:
    """Return how many workers of an asynchronous run are on its first machine, from what that says, as data."""
    return int(json.loads(text)["here"])


def published(config: Config, workload: Workload) -> dict[str, Any]:
    """Return what a run says of itself to other machines."""
    return {"config": dataclasses.asdict(config), "workload": _marks(workload)}


def check_own(given: Mapping[str, Any], workload: Workload, guest: Guest) -> None:
    """Raise UsageError if an option, or the workload, of a machine that joins a run is not the run's.

    Args:
        given: the fields of Config that the user gave.
        workload: of this machine.
        guest: of the run.
    """
    for name, value in given.items():
        expected = getattr(guest.config, name)
        if name not in OWN and value != expected:
            raise UsageError(f"{option_of(name)} {value}: the run to join has {expected}; leave the option out")
    expected = json.loads(guest.place.environment[SETTINGS])["workload"]
    for name, found in _marks(workload).items():
        if found != expected.get(name):
            why = f"WORKLOAD {given['workload']}: {name}: expected {expected.get(name)}, found {found}"
            raise UsageError(f"{why}; give that of the run to join")


def option_of(field: str) -> str:
    """Return the command-line option of a field of Config."""
    return "--set" if field == "settings" else f"--{field.replace('_', '-')}"


def _marks(workload: Workload) -> dict[str, Any]:
    """Return what tells workloads apart."""
    sizes = {"training examples": len(workload.train), "test examples": len(workload.test)}
    return {"name": workload.name, **sizes, "models": [*workload.models], "corpus": workload.corpus}


def needed_secret(option: str) -> bytes:
    """Return the secret that the environment gives; raise UsageError, which says what to do, if it gives none."""
    secret = secret_of(os.environ)
    if secret is None:
        raise UsageError(
            f"{option} needs a secret: set SWARMSTEP_SECRET_FILE to a file of at least {LEAST} bytes, the same on "
            "all machines, that only its owner can read; make one with: (umask 077; openssl rand -hex 32 > FILE)"
        )
    return secret


def _machines(store: Store) -> int:
    """Return how many machines have come, the first one included."""
    return 1 + store.add(GUESTS, 0)


def _guest(number: int) -> str:
    """Return the name under which another machine gives signs of life."""
    return f"guest-{number}"
