"""What membership asks of a store: of the one that a process serves, and of a real etcd of three machines."""

from __future__ import annotations

import http.server
import json
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from etcd_cluster import Cluster, needs_etcd
from swarmstep.comm import etcd
from swarmstep.comm.etcd import EtcdStore
from swarmstep.comm.heartbeat import alive_key, dead_key, witness_key
from swarmstep.comm.process_groups import serve_store
from swarmstep.comm.store import EtcdAddress, Store, TcpAddress, keys_of, peek, store_at
from swarmstep.elastic.commit_vote import ABORT, COMMIT
from swarmstep.elastic.keys import (
    KEPT,
    candidates_key,
    epoch_key,
    forming_key,
    group_key,
    members_key,
    saved_key,
    vote_key,
)
from swarmstep.elastic.retention import kept, members_of, remove_old
from swarmstep.errors import UsageError

Connect = Callable[[], Any]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture(params=["tcp", pytest.param("etcd", marks=[pytest.mark.slow, needs_etcd])])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """A new store; returns one connection to it after another."""
    if request.param == "etcd":
        address = store_at(request.getfixturevalue("cluster").address(request.node.name))
        yield lambda: address.connect(30.0)
    else:
        served, port = serve_store()
        yield lambda: TcpAddress("127.0.0.1", port).connect(30.0)
        del served


def at_once(tasks: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task, daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
        assert not thread.is_alive()


def test_a_counter_begins_at_0_and_counts_each_addition_once(connect: Connect) -> None:
    store = connect()
    assert [store.add("n", 0), store.add("n", 2), store.add("n", 0), store.add("n", -3)] == [0, 2, 2, -1]
    found: list[int] = []
    stores = [connect() for _ in range(4)]
    at_once([lambda s=s: found.extend(s.add("m", 1) for _ in range(10)) for s in stores])
    assert sorted(found) == list(range(1, 41))


def test_compare_and_set(connect: Connect) -> None:
    store = connect()
    assert store.compare_set("k", "a", "b") == b"a"  # there is none
    assert not store.check(["k"])
    assert store.compare_set("k", "", "b") == b"b"
    assert store.compare_set("k", "", "c") == b"b"
    assert store.compare_set("k", "b", "d") == b"d"
    assert store.get("k") == b"d"


def test_one_of_many_is_first_and_all_see_which(connect: Connect) -> None:
    stores, found = [connect() for _ in range(4)], []
    at_once([lambda i=i, s=s: found.append(s.compare_set("k", "", str(i))) for i, s in enumerate(stores)])
    assert len(found) == 4
    assert len({*found}) == 1


def test_values_are_waited_for_in_their_order(connect: Connect) -> None:
    store, other = connect(), connect()
    found: list[Any] = []
    keys = [f"k{number}" for number in range(200)]

    def later() -> None:
        for key in reversed(keys):
            other.set(key, key.upper())

    at_once([lambda: found.append(store.multi_get(keys)), later])
    assert found == [[key.upper().encode() for key in keys]]
    assert store.check(keys)
    assert not store.check([*keys, "none"])


def test_what_is_removed_is_as_if_it_had_never_been(connect: Connect) -> None:
    store = connect()
    store.set("k", "")
    assert store.check(["k"])
    assert [store.delete_key("k"), store.delete_key("k"), store.check(["k"])] == [True, False, False]
    assert store.compare_set("k", "", "new") == b"new"


def test_a_look_neither_waits_nor_leaves_a_key(connect: Connect) -> None:
    store = connect()
    before = store.num_keys()
    assert peek(store, "k") == ""
    assert (store.num_keys(), store.check(["k"])) == (before, False)
    store.set("k", "v")
    store.set("l/m", "w")
    assert peek(store, "k") == "v"
    assert sorted(keys_of(store)) == ["k", "l/m"]
    assert store.num_keys() == before + 2


def decided(store: Any, number: int, names: list[str], verdict: str = COMMIT) -> None:
    """Leave what a group leaves in the store that has formed and voted."""
    for place, name in enumerate(names, 1):
        store.add(candidates_key(number), 1)
        store.set(f"{candidates_key(number)}/{place}", json.dumps([name, None]))
        store.set(f"{group_key(number)}/default/{place}", "an address")
        store.add(alive_key(name), 1)
        for key in (witness_key(name), saved_key(name)):
            store.set(key, "1")
    store.add(forming_key(number), 1)
    store.set(members_key(number), json.dumps([[name, None] for name in names]))
    for vote in (0, 7):
        store.set(f"{vote_key(number)}/{vote}", verdict)
        store.add(f"{vote_key(number)}/{vote}/votes", len(names))


def left(store: Any) -> tuple[set[int], set[str]]:
    """Return the epochs and the names of which there are keys."""
    keys = [key.split("/") for key in keys_of(store)]
    return {int(key[2]) for key in keys if key[1] == "epoch"}, {key[2] for key in keys if key[1] == "alive"}


def test_the_number_of_keys_does_not_depend_on_the_number_of_epochs(connect: Connect) -> None:
    store, counts = connect(), list[int]()
    for number in range(12):
        names = ["0.0", f"1.{number}"]
        decided(store, number, names)
        remove_old(store, number, names)
        counts.append(store.num_keys())
        store.set(dead_key(names[1]), "1")
    assert counts[1:] == [counts[1]] * 11
    assert kept(store) == [11]
    assert left(store) == ({11}, {"0.0", "1.11"})


def test_who_may_come_back_finds_the_keys_it_needs(connect: Connect) -> None:
    store = connect()
    decided(store, 0, ["a", "b", "c"])
    decided(store, 1, ["a", "b"], ABORT)  # never began, and both have gone on
    decided(store, 2, ["b", "d"], ABORT)  # never began, and d may be about to vote on it
    decided(store, 3, ["a"])
    remove_old(store, 3, ["a"])
    assert kept(store) == [0, 2, 3]  # b and c, who are silent, hold the state of 0
    assert left(store) == ({0, 1, 2, 3}, {"a", "b", "c", "d"})
    assert [len(members_of(store, number)) for number in range(4)] == [3, 2, 2, 1]
    assert not [key for key in keys_of(store) if key.startswith((group_key(0), group_key(1), group_key(2)))]
    store.set(dead_key("c"), "1")
    decided(store, 4, ["a", "b"])
    remove_old(store, 4, ["a", "b"])
    assert kept(store) == [2, 4]
    assert left(store) == ({2, 3, 4}, {"a", "b", "d"})  # who votes in 2 looks whether there are candidates for 3
    store.set(dead_key("d"), "1")
    decided(store, 5, ["a", "b"])
    remove_old(store, 5, ["a", "b"])
    assert left(store) == ({5}, {"a", "b"})


def test_a_late_removal_takes_nothing_back(connect: Connect) -> None:
    store = connect()
    for number in range(4):
        decided(store, number, ["a", "b"])
    remove_old(store, 3, ["a", "b"])
    before = sorted(keys_of(store))
    remove_old(store, 2, ["a", "b"])
    assert (sorted(keys_of(store)), peek(store, KEPT)) == (before, "[3]")
    store.set(f"{epoch_key(1)}/vote/9", ABORT)  # a request that was carried out late
    store.add(alive_key("gone"), 0)  # by one who had not heard of its death
    decided(store, 4, ["a", "b"])
    remove_old(store, 4, ["a", "b"])
    assert left(store) == ({4}, {"a", "b"})


class Model:
    """What a store does, in a dictionary."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def add(self, key: str, amount: int) -> int:
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        if self.values.get(key, "") == expected:
            self.values[key] = desired
        return self.values.get(key, expected).encode()


def history(seed: int, length: int, stores: list[Any]) -> tuple[list[Any], list[Any]]:
    """Return what random calls have returned, and what they should have."""
    rng, model, found, expected = random.Random(seed), Model(), [], []
    for _ in range(length):
        store = rng.choice(stores)
        if rng.random() < 0.5:
            key, amount = rng.choice(["n", "m"]), rng.choice([0, 1, 2])
            found.append(store.add(key, amount))
            expected.append(model.add(key, amount))
        else:
            words = rng.choice("ab"), rng.choice(["", "x", "y"]), rng.choice(["x", "y"])
            found.append(store.compare_set(*words))
            expected.append(model.compare_set(*words))
    return found, expected


def test_random_calls_do_what_the_model_does(connect: Connect) -> None:
    found, expected = history(0, 60, [connect(), connect()])
    assert found == expected


# Of etcd alone.


class Unlucky(EtcdStore):
    """Loses requests and answers, and has some arrive twice, the second time late."""

    def __init__(self, endpoints: tuple[str, ...], run: str, seed: int) -> None:
        self.rng, self.late = random.Random(seed), list[tuple[str, str]]()
        super().__init__(endpoints, run, 30.0)

    def _ask(self, what: str, content: str) -> Any:
        fate = self.rng.random()
        if fate < 0.2:
            raise OSError("the request was lost")
        if self.late and fate < 0.4:
            super()._ask(*self.late.pop(0))
        answer = super()._ask(what, content)
        if what == "kv/txn" and '"success": [{"request_put"' in content:
            self.late.append((what, content))
        if fate > 0.7:
            raise OSError("the answer was lost")
        return answer


@pytest.mark.slow
@needs_etcd
@pytest.mark.parametrize("seed", range(5))
def test_a_change_is_made_once_whatever_is_lost_or_repeated(cluster: Cluster, seed: int) -> None:
    stores: list[Any] = [Unlucky(cluster.endpoints, f"unlucky-{seed}", 2 * seed + place) for place in range(2)]
    found, expected = history(seed, 40, stores)
    assert found == expected


@pytest.mark.slow
@needs_etcd
def test_a_connection_takes_a_new_key_of_its_own_in_time(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd, "RENEWED", 0.0)
    found, expected = history(7, 20, [store_at(cluster.address("renewed")).connect(30.0)])
    assert found == expected


@pytest.mark.slow
@needs_etcd
@pytest.mark.parametrize("fate", ["kill", "stop"])
def test_the_store_goes_on_without_its_leader(tmp_path: Path, fate: str) -> None:
    with Cluster(tmp_path) as cluster:
        address, found = store_at(cluster.address()), list[int]()
        stores: list[Store] = [address.connect(30.0) for _ in range(3)]
        begun, leader = threading.Event(), cluster.leader()

        def add(store: Store) -> None:
            for number in range(15):
                if number == 5:
                    begun.set()
                found.append(store.add("n", 1))

        def strike() -> None:
            begun.wait()
            getattr(cluster, fate)(leader)

        at_once([*(lambda s=s: add(s) for s in stores), strike])
        assert sorted(found) == list(range(1, 46))
        assert cluster.leader() != leader
        if fate == "kill":
            cluster.restart(leader)
        else:
            cluster.proceed(leader)
        assert stores[0].add("n", 0) == 45


@pytest.mark.slow
@needs_etcd
def test_without_a_majority_a_call_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "LIMIT", 2.0)
    with Cluster(tmp_path) as cluster:
        store: Any = store_at(cluster.address()).connect(30.0)
        for number in (0, 1):
            cluster.kill(number)
        with pytest.raises(RuntimeError, match=r"etcd: no answer within .* s; 127\.0\.0\.1:"):
            store._call("kv/range", {"key": "YQ=="}, 2.0)
        cluster.restart(0)
        cluster.leader()
        assert store.add("n", 1) == 1


@pytest.mark.parametrize("reply", [b"[]", b"null", b"<html>"])
def test_another_program_at_the_address_is_named(reply: bytes) -> None:
    class Other(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        found = re.escape(reply.decode())
        with pytest.raises(RuntimeError, match=f"200 OK: expected a JSON object, found '{found}'"):
            EtcdStore([f"127.0.0.1:{server.server_address[1]}"], "swarmstep", 0.0)
        server.shutdown()
        thread.join()


def test_addresses() -> None:
    assert store_at("10.0.0.1:29500") == TcpAddress("10.0.0.1", 29500)
    assert store_at("etcd://a:1,[::1]:2") == EtcdAddress(("a:1", "[::1]:2"), "swarmstep")
    assert store_at("etcds://a:1/mine") == EtcdAddress(("a:1",), "mine", secured=True)
    for text in ("etcd://a:1,b:2/mine", "etcds://a:1,b:2/mine"):
        assert str(store_at(text)) == text
    for text in ("etcd://", "etcd://a", "a:b", "etcd://a:1,b", "etcd://a..b:1", f"{64 * 'a'}:1"):
        with pytest.raises(UsageError, match="the store"):
            store_at(text)
