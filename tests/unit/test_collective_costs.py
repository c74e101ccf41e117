"""Costs of collectives: against formulas; monotone in bytes, workers and speed of the link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.comm.metered import Call
from swarmstep.comm.p2p import FLOOR
from swarmstep.errors import DataError
from swarmstep.network.collective_costs import CALL, HOP, VERBS
from swarmstep.network.link import Link
from swarmstep.network.trace import Trace
from swarmstep.network.virtual_clock import VirtualClock

FAST = Link(1e12)
SLOW = Link(1e8)
MILLION = 4_000_000  # bytes of a million float32


def cost_of(verb: str, sent: int, size: int = 4, link: Link = SLOW) -> float:
    return VirtualClock(link, size, 0.0).cost(Call(verb, sent, size))


def test_bulk_takes_what_its_bytes_take() -> None:
    wire = MILLION * 8 / 1e8 * 1514 / 1448  # a worker's vector, in frames
    assert cost_of("mean", MILLION) == pytest.approx(2 * 3 / 4 * wire, rel=0.01)
    assert cost_of("mean", MILLION, 2) == pytest.approx(wire, rel=0.01)
    assert 3 * wire < cost_of("gather", MILLION) < 1.1 * 3 * wire
    assert wire < cost_of("permute", MILLION) < wire + 0.05
    assert cost_of("all_to_all", MILLION) == pytest.approx(3 / 4 * wire, rel=0.02)
    # A chain: the last of four waits for two pieces of 64 KiB more.
    assert cost_of("broadcast", MILLION) == pytest.approx(wire + 2 * 65536 * 8 / 1e8 * 1514 / 1448, rel=0.01)


@pytest.mark.parametrize(
    ("verb", "messages"), [("mean", 12), ("gather", 6), ("broadcast", 2), ("permute", 2), ("all_to_all", 2)]
)
def test_a_few_bytes_cost_delays(verb: str, messages: int) -> None:
    """As counted on a network of 5 ms: what 16 bytes took there, divided by 5 ms."""
    link = Link(1e12, delay=1.0)
    assert cost_of(verb, 16, link=link) == pytest.approx(CALL + messages * (1.0 + HOP))


def test_a_small_broadcast_takes_the_tree() -> None:
    one = (FLOOR - 1) * 8 / 1e8 * 1514 / 1448
    assert cost_of("broadcast", FLOOR - 1) == pytest.approx(2 * one, rel=0.02)
    assert cost_of("broadcast", FLOOR) < 0.6 * cost_of("broadcast", FLOOR - 1)


def test_where_the_link_costs_nothing_the_tree_has_fewer_messages() -> None:
    assert cost_of("broadcast", FLOOR, 8, FAST) == pytest.approx(CALL + 3 * HOP, rel=0.05)


def test_idle_connections_have_to_open_their_windows() -> None:
    """10 packets, 20, 40, ... a round trip, until the link is full; half of that waiting is charged."""
    link = Link(1e8, delay=0.02)
    payload, turn = 1e8 / 8 * 1448 / 1514, 0.04 + 4 * 1514 * 8 / 1e8
    waits = [turn - 10 * 1448 * 2**k / payload for k in range(6)]
    assert min(waits[:6]) > 0 > turn - 10 * 1448 * 2**6 / payload
    expected = CALL + 2 * (HOP + 0.02) + 10_000_000 / payload + 0.045 + sum(waits) / 2
    assert cost_of("permute", 10_000_000, link=link) == pytest.approx(expected)


def test_loss_limits_the_rate_as_mathis_says() -> None:
    link = Link(1e9, delay=0.02, loss=0.01)
    rate = 1448 / 0.04 * 1.22 / 0.1  # bytes a second
    assert 10_000_000 / rate < cost_of("mean", 10_000_000, 2, link) < 1.1 * 10_000_000 / rate


def test_one_worker_pays_nothing() -> None:
    assert all(cost_of(verb, MILLION, 1) == 0.0 for verb in VERBS)


def test_unknown_verbs_are_an_error() -> None:
    with pytest.raises(DataError, match=r"unknown verb 'reduce'; expected one of mean, .*; run it again$"):
        cost_of("reduce", 16)
    with pytest.raises(DataError, match="unknown verb"):
        VirtualClock(SLOW, 4, 0.0).seconds(Trace([[[["reduce", 16, 4]], 1, 1, 0, 1]]), 1)


links = st.builds(
    Link, st.floats(1e5, 1e11), st.sampled_from([0.0, 1e-3, 0.05]), st.sampled_from([0.0, 1e-4, 0.05])
)
verbs = st.sampled_from(sorted(VERBS))
# Broadcast and all-to-all get cheaper where the better way is tried.
sizes_of_calls = st.tuples(st.integers(0, FLOOR - 1), st.integers(0, FLOOR - 1)) | st.tuples(
    st.integers(FLOOR, 10**9), st.integers(FLOOR, 10**9)
)


@given(verbs, sizes_of_calls, st.integers(2, 64), links)
def test_more_bytes_cost_no_less(verb: str, sent: tuple[int, int], size: int, link: Link) -> None:
    assert cost_of(verb, min(sent), size, link) <= cost_of(verb, max(sent), size, link) * (1 + 1e-9)


@given(verbs, st.integers(0, 10**9), st.integers(2, 64), links, st.floats(1.0, 100.0))
def test_faster_links_cost_no_more(verb: str, sent: int, size: int, link: Link, factor: float) -> None:
    better = Link(link.rate * factor, link.delay / factor, link.loss / factor)
    assert cost_of(verb, sent, size, better) <= cost_of(verb, sent, size, link) * (1 + 1e-9)


@given(st.sampled_from(["mean", "gather", "permute"]), st.integers(0, 10**9), st.integers(2, 63), links)
def test_more_workers_cost_no_less(verb: str, sent: int, size: int, link: Link) -> None:
    # An all-reduce among more is cheaper at most by the windows that its smaller shares need not open.
    opening = 0.0 if verb != "mean" else cost_of("permute", sent, 2, link) - cost_of("permute", 0, 2, link)
    assert cost_of(verb, sent, size, link) <= cost_of(verb, sent, size + 1, link) * (1 + 1e-9) + opening
