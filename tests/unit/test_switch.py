"""The switch with delay and loss: what comes out when, by a clock of the test's own; real sockets."""

from __future__ import annotations

import os
import socket
import threading
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.network.switch import HEADER, MAX_FRAME, Switch, serve

EVERYBODY = 255


def frame(to: int, source: int, payload: bytes = b"") -> bytes:
    """Return a frame between hosts of these numbers, as packet sockets give it."""
    return bytes(HEADER) + bytes([2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, source]) + b"\x08\x00" + payload


def test_what_is_for_nobody_known_goes_to_all_others() -> None:
    switch = Switch(3, delay=1.0)
    switch.receive(0, frame(EVERYBODY, 10), 5.0)
    switch.receive(1, frame(10, 11), 5.5)
    switch.receive(2, frame(12, 13), 5.5)
    assert switch.due(6.0) == [(1, frame(EVERYBODY, 10)), (2, frame(EVERYBODY, 10))]
    assert switch.due(6.5) == [(0, frame(10, 11)), (0, frame(12, 13)), (1, frame(12, 13))]
    assert switch.due(100.0) == []


def test_a_host_that_moves_is_found_again() -> None:
    switch = Switch(3, delay=0.0)
    for port in (0, 2):
        switch.receive(port, frame(EVERYBODY, 10), 0.0)
        switch.due(0.0)
        switch.receive(1, frame(10, 11), 0.0)
        assert switch.due(0.0) == [(port, frame(10, 11))]


def test_how_long_to_wait() -> None:
    switch = Switch(2, delay=0.25)
    assert switch.wait(0.0) is None
    switch.receive(0, frame(1, 0), 1.0)
    switch.receive(0, frame(1, 0), 2.0)
    assert switch.wait(1.125) == 0.125
    assert switch.due(1.125) == []
    assert switch.wait(1.5) == 0.0
    assert switch.due(1.5) == [(1, frame(1, 0))]
    assert switch.wait(1.5) == 0.75


class Event(NamedTuple):
    after: int  # ticks since the last one
    port: int
    to: int


EVENTS = st.lists(st.builds(Event, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)), max_size=60)


@given(EVENTS, st.integers(0, 6))
def test_each_frame_comes_out_once_in_order_and_in_time(events: list[Event], delay: int) -> None:
    """Four hosts of one port each, all known; a tick is a binary fraction, so that sums are exact."""
    tick = 2.0**-6
    switch = Switch(4, delay * tick)
    for port in range(4):
        switch.receive(port, frame(EVERYBODY, port), -100.0)
    switch.due(-50.0)
    coming = [(sum(e.after for e in events[: i + 1]), i, e) for i, e in enumerate(events)]
    expected = [(at + delay, e.to, frame(e.to, e.port, b"%d" % i)) for at, i, e in coming]
    sent_at: list[tuple[int, int, bytes]] = []
    for now in range(3 * len(events) + delay + 1):
        for at, i, e in coming:
            if at == now:
                switch.receive(e.port, frame(e.to, e.port, b"%d" % i), now * tick)
        sent_at += [(now, port, sent) for port, sent in switch.due(now * tick)]
    assert sent_at == expected
    assert switch.wait(0.0) is None


@pytest.mark.parametrize("loss", [0.0, 0.01, 0.2, 0.5])
def test_losses_are_binomial_and_those_of_the_seed(loss: float) -> None:
    def kept(seed: int) -> list[bytes]:
        switch = Switch(2, 0.0, loss, seed)
        for number in range(10_000):
            switch.receive(0, frame(1, 0, b"%d" % number), 0.0)
        return [sent for _, sent in switch.due(0.0)]

    first, other = kept(0), kept(1)
    assert kept(0) == first
    assert (first == other) == (loss == 0.0)
    for kept_frames in (first, other):
        assert abs(len(kept_frames) - 10_000 * (1 - loss)) <= 5 * (10_000 * loss * (1 - loss)) ** 0.5


def test_frames_are_carried_between_sockets_until_the_end() -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
    hosts, ports = [host for host, _ in pairs], [port for _, port in pairs]
    for port in ports:
        port.setblocking(False)
    end, keep = os.pipe()
    thread = threading.Thread(target=serve, args=(Switch(3, delay=0.001), ports, end))
    thread.start()
    try:
        for host in hosts:
            host.settimeout(60)
        hosts[0].send(frame(EVERYBODY, 0))
        assert [hosts[rank].recv(MAX_FRAME) for rank in (1, 2)] == [frame(EVERYBODY, 0)] * 2
        for start in range(0, 40, 8):  # a socket of this kind keeps 10
            some = [frame(0, 1, b"%d" % number + bytes(1400)) for number in range(start, start + 8)]
            for one in some:
                hosts[1].send(one)
            assert [hosts[0].recv(MAX_FRAME) for _ in some] == some
    finally:
        os.close(keep)
        thread.join(60)
    assert not thread.is_alive()
    os.close(end)
    for pair in pairs:
        for one in pair:
            one.close()
