"""A store in etcd, which goes on as long as a majority of etcd's machines does; over etcd's JSON gateway."""

from __future__ import annotations

import base64
import http.client
import json
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from swarmstep.comm.etcd_access import Access
from swarmstep.comm.torch_private import Store

ATTEMPT = 1.5  # seconds that one machine has to answer; then the next one is asked
LIMIT = 15.0  # seconds after which a call is given up: a new leader is there within a few
PAUSE, LONGEST_PAUSE = 2e-3, 0.05  # seconds between two looks for a key, and between two attempts
WAIT = 300.0  # seconds to wait for a key, as torch's stores do
LEASE, RENEWED = 900, 300.0  # seconds that a connection's own key lives, and after which it takes another one
AT_ONCE = 100  # keys in one request; etcd allows 128
NOT_FOUND, UNAUTHENTICATED = 5, 16  # the codes of gRPC
AGAIN = (1, 2, 4, 8, 14)  # cancelled, unknown, deadline exceeded, too many requests, unavailable: say, no leader


class _NotNow(Exception):
    """A machine is there and cannot answer now."""


class EtcdStore(Store):
    """One connection to a `swarmstep.comm.store.Store` in etcd.

    A call asks one machine after another until one answers, so a request may reach etcd more than once. A change
    that depends on what was there is therefore made in one transaction with a key of this connection's own: it
    requires the number of the change before and leaves that of this one. So it is made once; and where the answer
    was lost, the key tells that it was made, and with which result. A `set` and a deletion may be repeated.

    Safe to use from several threads: one call after the other.

    Args:
        endpoints: HOST:PORT of each machine.
        prefix: of all keys.
        patience: seconds for the first answer.
        access: how etcd is reached.

    Raises:
        RuntimeError: there was none. Each call raises it after LIMIT seconds without an answer.
    """

    def __init__(
        self, endpoints: Sequence[str], prefix: str, patience: float, access: Access | None = None
    ) -> None:
        super().__init__()
        self._access = access or Access()
        self._headers: dict[str, str] = {}  # that show who asks
        self._connection: http.client.HTTPConnection | None = None
        self._endpoints, self._prefix = list(endpoints), prefix
        self._lock = threading.RLock()
        self._own = ""  # this connection's own key
        self._taken = 0.0  # when
        self._lease = ""
        self._number = 0  # of the change under way
        self._left: str | None = None  # what the change before it left in the own key
        self._seen: str | None = None  # what the last attempt of a change has found
        self._call("kv/range", _range(self._named("")), patience)

    def __del__(self) -> None:
        if self._connection:
            self._connection.close()

    def add(self, key: str, value: int) -> int:
        """Add to a counter; see `swarmstep.comm.store.Store` for this and what follows."""
        found = None if value else self._values([key])[0]
        if found is not None:
            return int(found)
        return int(self._change(key, None, lambda old: str(int(old or 0) + value)))

    def compare_set(self, key: str, expected_value: str, desired_value: str) -> bytes:
        """Set a key that has the expected value, and return its value."""

        def following(old: str | None) -> str | None:
            return desired_value if (old or "") == expected_value else None

        return self._change(key, expected_value or None, following).encode()

    def set(self, key: str, value: str | bytes) -> None:
        """Set a key."""
        data = value.encode() if isinstance(value, str) else bytes(value)
        self._call("kv/put", {"key": self._named(key), "value": _text(data)})

    def get(self, key: str) -> bytes:
        """Wait for a key, and return its value."""
        return self.multi_get([key])[0]

    def multi_get(self, keys: list[str]) -> list[bytes]:
        """Wait for keys, and return their values."""
        found = self._wait(keys, WAIT)
        return [value for value in found if value is not None]

    def check(self, keys: list[str]) -> bool:
        """Return whether all of these keys have values."""
        return None not in self._values(keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Wait for keys; raise RuntimeError if some have no value in time."""
        self._wait(keys, WAIT if timeout is None else timeout.total_seconds())

    def delete_key(self, key: str) -> bool:
        """Remove a key."""
        return int(self._call("kv/deleterange", {"key": self._named(key)}).get("deleted", 0)) > 0

    def delete_prefix(self, prefix: str) -> None:
        """Remove all keys that begin like this."""
        self._call("kv/deleterange", {"key": self._named(prefix), "range_end": self._named(prefix, 1)})

    def list_keys(self) -> list[str]:
        """Return all keys, apart from those of connections."""
        body = {"key": self._named(""), "range_end": self._named("", 1), "keys_only": True}
        rows = self._call("kv/range", body).get("kvs", ())
        return [base64.b64decode(row["key"]).decode().removeprefix(f"{self._prefix}/") for row in rows]

    def num_keys(self) -> int:
        """Return how many keys there are, apart from those of connections."""
        body = {"key": self._named(""), "range_end": self._named("", 1), "count_only": True}
        return int(self._call("kv/range", body).get("count", 0))

    def _wait(self, keys: list[str], seconds: float) -> list[bytes | None]:
        deadline, pause = time.monotonic() + seconds, PAUSE
        while None in (found := self._values(keys)):
            if time.monotonic() > deadline:
                missing = keys[found.index(None)]
                raise RuntimeError(f"etcd: expected a value of {missing} within {seconds:g} s, found none")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return found

    def _values(self, keys: Sequence[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for start in range(0, len(keys), AT_ONCE):
            ranges = [{"request_range": _range(self._named(key))} for key in keys[start : start + AT_ONCE]]
            found += _found(self._call("kv/txn", {"success": ranges}))
        return found

    def _change(self, key: str, guess: str | None, following: Callable[[str | None], str | None]) -> str:
        """Change a key once, from what it has to what follows from it (None: nothing); return what it has then.

        Args:
            key: to change.
            guess: what it probably has (None: no value); something follows from it.
            following: returns what follows from a value.
        """
        with self._lock:
            self._number += 1
            old = guess
            while (new := following(old)) is not None:
                if (made := self._swap(key, old, new)) is not None:
                    return made
                old = self._seen
            return guess or "" if old is None else old

    def _swap(self, key: str, old: str | None, new: str) -> str | None:
        """Change a key from one value to another; return what it was changed to, or None, and it has `_seen`.

        An earlier attempt of the same change, from another value, may have been the one that was made.
        """
        self._take_own_key()
        mark = f"{self._number} {new}"
        condition = [self._same(self._named(key), old), self._same(self._own, self._left)]
        puts = [
            {"request_put": {"key": self._named(key), "value": _text(new.encode())}},
            {"request_put": {"key": self._own, "value": _text(mark.encode()), "lease": self._lease}},
        ]
        ranges = [{"request_range": _range(name)} for name in (self._named(key), self._own)]
        answer = self._call("kv/txn", {"compare": condition, "success": puts, "failure": ranges})
        if answer.get("succeeded"):
            self._left = mark
            return new
        self._seen, left = (None if value is None else value.decode() for value in _found(answer))
        if left is None and self._left is not None:
            self._expired()
        self._left = left  # where the change before was given up, and was made all the same, its mark
        return left.partition(" ")[2] if left and left.startswith(f"{self._number} ") else None

    def _take_own_key(self) -> None:
        """Take a new key of this connection's own, before the lease of the last one ends."""
        if self._own and time.monotonic() - self._taken < RENEWED:
            return
        self._taken = time.monotonic()
        self._lease = self._call("lease/grant", {"TTL": str(LEASE)})["ID"]
        self._own, self._left = _text(f"{self._prefix}-connection/{secrets.token_hex(8)}".encode()), None

    def _expired(self) -> None:
        self._own = ""
        raise RuntimeError("etcd: this process stood still for so long that its connection has expired")

    def _same(self, name: str, value: str | None) -> dict[str, Any]:
        """Return the condition that a key has a value (None: none)."""
        if value is None:
            return {"key": name, "target": "VERSION", "version": "0"}
        return {"key": name, "target": "VALUE", "value": _text(value.encode())}

    def _named(self, key: str, more: int = 0) -> str:
        """Return a key in full; with `more` 1, the one behind all that begin with it."""
        name = f"{self._prefix}/{key}".encode()
        return _text(name[:-1] + bytes([name[-1] + more]))

    def _call(self, what: str, body: dict[str, Any], limit: float = LIMIT) -> Any:
        """Ask one machine after another; return the answer."""
        content, deadline = json.dumps(body), time.monotonic() + limit
        with self._lock:
            while True:
                try:
                    return self._ask(what, content)
                except (OSError, http.client.HTTPException, _NotNow) as error:
                    asked = self._endpoints[0]
                    self._turn()
                    if time.monotonic() > deadline:
                        raise RuntimeError(
                            f"etcd: no answer within {limit:g} s; {asked}: {error or type(error).__name__}"
                        ) from error
                    time.sleep(LONGEST_PAUSE)

    def _ask(self, what: str, content: str) -> Any:
        if self._access.user and not self._headers:
            name, password = self._access.user
            said = self._post("auth/authenticate", json.dumps({"name": name, "password": password}))
            self._headers = {"Authorization": said["token"]}
        return self._post(what, content)

    def _post(self, what: str, content: str) -> Any:
        if self._connection is None:
            self._connection = self._access.connection(self._endpoints[0], ATTEMPT)
        self._connection.request("POST", f"/v3/{what}", content, self._headers)
        response = self._connection.getresponse()
        text = response.read()
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        if not isinstance(said, dict):  # of a proxy in between, or of another program
            found = text[:200].decode(errors="replace").strip()
            raise _NotNow(f"{response.status} {response.reason}: expected a JSON object, found {found!r}")
        if response.status == http.client.OK:
            return said
        message = said.get("message") or said.get("error") or text.decode(errors="replace")
        if said.get("code") == UNAUTHENTICATED:
            self._headers = {}  # what showed who asks has expired: it is taken anew
        if said.get("code") in (*AGAIN, UNAUTHENTICATED):
            raise _NotNow(message)
        if said.get("code") == NOT_FOUND:
            self._expired()
        raise RuntimeError(f"etcd at {self._endpoints[0]}: {message}")

    def _turn(self) -> None:
        """Ask the next machine from now on."""
        if self._connection:
            self._connection.close()
        self._connection = None
        self._endpoints.append(self._endpoints.pop(0))


def _range(name: str) -> dict[str, Any]:
    return {"key": name}


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _found(answer: Any) -> list[bytes | None]:
    """Return the values that a transaction of single keys has found."""
    found: list[bytes | None] = []
    for part in answer.get("responses", ()):
        rows = part["response_range"].get("kvs")
        found.append(base64.b64decode(rows[0].get("value", "")) if rows else None)
    return found
