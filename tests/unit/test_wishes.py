"""Rounds that each member wants at another time: they begin when all have wanted them, and nobody waits."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from swarmstep.comm.process_groups import connect, serve_store
from swarmstep.elastic.keys import wanted_key
from swarmstep.elastic.wishes import Wishes
from swarmstep.errors import CommError

LIMIT = 60.0  # seconds; a hang, not a measurement


def until(true: Any) -> None:
    deadline = time.monotonic() + LIMIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def member(port: int, patience: float = LIMIT) -> Wishes:
    link: Any = SimpleNamespace(name="0.0", store=connect("127.0.0.1", port, LIMIT))
    return Wishes(link, patience)


def test_a_round_begins_when_all_have_wanted_it() -> None:
    store, port = serve_store()
    one, other = member(port), member(port)
    first, second = wanted_key(0, 1), wanted_key(0, 2)
    assert not one.meet(first, 2)
    until(lambda: store.check([first]))
    assert not one.meet(first, 2)  # asked again, it is not counted again
    assert int(store.get(first)) == 1
    until(lambda: other.meet(first, 2) and one.meet(first, 2))
    until(lambda: other.meet(second, 2) | one.meet(second, 2) and one.meet(second, 2))
    until(lambda: not store.check([first]))  # what is over leaves the store
    assert int(store.get(second)) == 2


def test_a_wish_that_is_given_up_is_waited_for_no_more() -> None:
    store, port = serve_store()
    one = member(port)
    one.meet(wanted_key(0, 1), 2)
    until(lambda: store.check([wanted_key(0, 1)]))
    one.meet(wanted_key(1, 1), 1)  # it is alone in the next group
    until(lambda: one.meet(wanted_key(1, 1), 1))
    one.end()
    assert int(store.get(wanted_key(1, 1))) == 1


def test_who_is_alive_and_never_comes_is_waited_for_up_to_patience() -> None:
    _store, port = serve_store()
    one = member(port, patience=0.1)
    with pytest.raises(CommError, match=r"waited 0\.1 s for 2 members.*; 1 came; to wait longer"):
        until(lambda: one.meet(wanted_key(0, 1), 2))
