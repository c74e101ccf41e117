"""The agreement on who trains together: votes, candidates, newcomers, and what can go wrong between them."""

from __future__ import annotations

import functools
import gc
import json
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmstep.comm import heartbeat
from swarmstep.comm.group import Decision
from swarmstep.comm.heartbeat import Heartbeat
from swarmstep.comm.process_groups import connect, serve_store
from swarmstep.comm.store import TcpAddress
from swarmstep.elastic.commit_vote import ABORT, COMMIT, CommitVote, first_verdict
from swarmstep.elastic.keys import FINISH, OVER, STOP, candidates_key, members_key, vote_key
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CommError, PeerLost

SOON = 30.0  # seconds; far beyond what any wait here should take
REQUESTS = ("asked/renew", "asked/stop", "asked/finish")


@pytest.fixture(autouse=True)
def no_witnesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """These workers share one process, which would vouch for them all."""

    def nowhere(host: str) -> str:
        raise OSError(host)

    monkeypatch.setattr(heartbeat, "own_address", nowhere)


@pytest.fixture
def store() -> Iterator[tuple[Any, int]]:
    served, port = serve_store()
    yield served, port
    del served


def until(condition: Callable[[], Any]) -> None:
    """Wait for what another thread or process brings about."""
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_heartbeat_that_has_ended_lets_go_of_its_connection(store: tuple[Any, int]) -> None:
    """A worker opens another one after each network cut."""
    beats = Heartbeat(connect("127.0.0.1", store[1], SOON), "a", [], period=0.01)
    beats.start()
    until(lambda: store[0].check(["swarmstep/alive/a"]) and store[0].add("swarmstep/alive/a", 0) > 1)
    beats.stop()
    gone = weakref.ref(beats)
    del beats
    gc.collect()
    assert gone() is None


def votes_on(store: tuple[Any, int], size: int, key: str = "b") -> list[CommitVote]:
    """Return the ends of a vote, each with a connection of its own."""
    served, port = store
    for request in REQUESTS:
        served.add(request, 0)
    return [CommitVote(lambda: connect("127.0.0.1", port, SOON), key, size, REQUESTS) for _ in range(size)]


def patient(waited: float) -> None:
    assert waited < SOON


def at_once(waited: float) -> None:
    raise PeerLost("somebody is gone")


def outcomes(tasks: list[Callable[[], Any]]) -> list[Any]:
    """Run tasks in threads at the same time; return what each returned or raised."""
    found: list[Any] = [None] * len(tasks)

    def run(place: int) -> None:
        try:
            found[place] = tasks[place]()
        except CommError as error:
            found[place] = error

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(tasks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    return found


def test_all_votes_commit_one_decision_after_another_and_leave_two_in_the_store(store: tuple[Any, int]) -> None:
    ends = votes_on(store, 3)
    keys = store[0].num_keys()
    for _ in range(4):
        assert outcomes([lambda e=end: e.decide(patient) for end in ends]) == [Decision()] * 3
    assert store[0].num_keys() - keys == 2 * 2  # the first, for those who come later, and the last
    assert store[0].get(first_verdict("b")).decode() == COMMIT


@pytest.mark.parametrize("number", range(3))
def test_what_was_asked_for_reaches_all_with_the_verdict(store: tuple[Any, int], number: int) -> None:
    ends = votes_on(store, 2)
    store[0].add(REQUESTS[number], 1)
    decision = Decision(*(place == number for place in range(3)))
    assert outcomes([lambda e=end: e.decide(patient) for end in ends]) == [decision] * 2


def test_one_who_gives_up_keeps_all_out(store: tuple[Any, int]) -> None:
    ends = votes_on(store, 3)
    ends[2].close()
    found = outcomes([lambda e=end: e.decide(patient) for end in ends])
    assert [type(error) for error in found] == [PeerLost] * 3


def test_one_who_voted_and_died_keeps_nobody_out(store: tuple[Any, int]) -> None:
    ends, (served, _) = votes_on(store, 3), store
    served.add("b/0/votes", 1)  # rank 2's, before it died
    assert outcomes([lambda e=end: e.decide(patient) for end in ends[:2]]) == [Decision()] * 2


def test_one_who_died_without_a_vote_takes_nobody_in(store: tuple[Any, int]) -> None:
    ends = votes_on(store, 3)
    found = outcomes([lambda: ends[0].decide(at_once), lambda: ends[1].decide(patient)])
    assert [type(error) for error in found] == [PeerLost] * 2
    assert store[0].get("b/0").decode() == ABORT


def test_one_who_dies_between_the_last_vote_and_the_count_leaves_one_verdict_for_all(
    store: tuple[Any, int],
) -> None:
    ends, (served, _) = votes_on(store, 2), store
    served.add("b/0/votes", 2)  # rank 1's, and rank 0's would be the third: nobody is the last
    with pytest.raises(PeerLost, match="somebody is gone"):
        ends[0].decide(at_once)
    assert served.get("b/0").decode() == ABORT


def test_one_who_comes_late_reads_the_same_verdict(store: tuple[Any, int]) -> None:
    ends, (served, _) = votes_on(store, 2), store
    served.add("b/0/votes", 1)
    assert ends[0].decide(patient) == Decision()
    ends[1].close()  # too late: all had voted
    assert served.get("b/0").decode() == COMMIT
    ends[0].close()  # of the next one
    found = outcomes([lambda: votes_on(store, 2)[1].decide(patient), lambda: ends[0].decide(patient)])
    assert found[0] == Decision()
    assert isinstance(found[1], PeerLost)


def test_trouble_while_waiting_does_not_undo_what_was_decided(store: tuple[Any, int]) -> None:
    ends, (served, _) = votes_on(store, 2), store

    def decided_meanwhile(waited: float) -> None:
        served.compare_set("b/0", "", f"{COMMIT} finish")
        raise PeerLost("the other one died after its vote")

    assert ends[0].decide(decided_meanwhile) == Decision(finish=True)


@given(
    st.lists(st.sampled_from(["vote", "vote", "vote", "give up", "doubt"]), min_size=2, max_size=4),
    st.lists(st.integers(0, 3), min_size=4, max_size=4),
)
def test_never_both(store: tuple[Any, int], acts: list[str], delays: list[int]) -> None:
    """Whatever each rank does and whenever: what one of them takes for committed, nobody takes for aborted."""
    key = f"b{store[0].add('examples', 1)}"
    ends = votes_on(store, len(acts), key)

    def play(end: CommitVote, act: str, delay: int) -> Any:
        threading.Event().wait(delay * 1e-3)
        if act == "give up":
            return end.close()
        return end.decide(at_once if act == "doubt" else patient)

    tasks = [functools.partial(play, end, act, delay) for end, act, delay in zip(ends, acts, delays, strict=False)]
    found = [said for said, act in zip(outcomes(tasks), acts, strict=True) if act != "give up"]
    assert len({type(said) for said in found}) <= 1
    verdict = store[0].get(first_verdict(key)).decode()
    assert all(isinstance(said, Decision if verdict == COMMIT else PeerLost) for said in found)
    if "give up" not in acts and "doubt" not in acts:
        assert verdict == COMMIT
    if "give up" in acts:
        assert verdict == ABORT


def test_a_store_that_is_gone_is_a_lost_peer() -> None:
    end = CommitVote(lambda: connect("127.0.0.1", 1, 0.2), "b", 1, REQUESTS)
    for ask in (lambda: end.decide(patient), end.close):
        with pytest.raises(PeerLost, match="no answer from the store"):
            ask()


def test_one_who_has_voted_goes_on_only_with_the_verdict() -> None:
    """Else it would not know whether what it holds is out of date; found by the simulation of membership."""
    served, port = serve_store()
    votes_on((served, port), 2)
    end = CommitVote(lambda: connect("127.0.0.1", port, 0.5), "b", 2, REQUESTS)

    def ends(waited: float) -> None:
        nonlocal served
        served = None

    with pytest.raises(CommError, match="does not tell whether the round counts") as raised:
        end.decide(ends)
    assert not isinstance(raised.value, PeerLost)


# Who is in the next group: the rule, on a real store, with what each says of itself.


def member(store: tuple[Any, int], name: str, **how: Any) -> Membership:
    return Membership(TcpAddress("127.0.0.1", store[1]), name, **{"silence": 1.0, "patience": SOON, **how})


def here(store: tuple[Any, int], number: int, rows: list[tuple[str, tuple[int, int] | None]]) -> None:
    """Say who waits for the group of an epoch."""
    served = store[0]
    for name, held in rows:
        store[0].add(f"swarmstep/alive/{name}", 1)
        place = served.add(candidates_key(number), 1)
        served.set(f"{candidates_key(number)}/{place}", json.dumps([name, held]))


def was(store: tuple[Any, int], number: int, names: list[str], begun: bool) -> None:
    """Say who was in the group of an epoch, and whether it began."""
    for name in names:
        store[0].add(f"swarmstep/alive/{name}", 1)
    store[0].set(members_key(number), json.dumps([[name, None] for name in names]))
    store[0].set(first_verdict(vote_key(number)), COMMIT if begun else ABORT)


def dies(store: tuple[Any, int], *names: str) -> None:
    for name in names:
        store[0].add(f"swarmstep/dead/{name}", 1)


@pytest.fixture
def chooser(store: tuple[Any, int]) -> Iterator[Membership]:
    """One who has not been in any group, and knows who was."""
    chooser = member(store, "c.0")
    yield chooser
    chooser.leave()


def test_members_go_on_first_in_their_order_and_newcomers_follow_as_they_came(
    store: tuple[Any, int], chooser: Membership
) -> None:
    was(store, 0, ["a.0", "b.0", "d.0"], True)
    here(store, 1, [("n.0", None), ("b.0", (0, 1)), ("m.0", None), ("a.0", (0, 0))])
    assert chooser.formation.choose(1, 0.0) == [("a.0", 0), ("b.0", 1), ("n.0", None), ("m.0", None)]


def test_who_says_so_twice_is_there_once(store: tuple[Any, int], chooser: Membership) -> None:
    was(store, 0, ["a.0"], True)
    here(store, 1, [("a.0", (0, 0)), ("a.0", (0, 0)), ("n.0", None), ("n.0", None)])
    assert chooser.formation.choose(1, 0.0) == [("a.0", 0), ("n.0", None)]


def test_one_who_holds_what_is_out_of_date_is_a_newcomer(store: tuple[Any, int], chooser: Membership) -> None:
    was(store, 0, ["a.0", "b.0"], True)
    was(store, 1, ["a.0"], True)
    here(store, 2, [("b.0", (0, 1)), ("a.0", (1, 0))])
    assert chooser.formation.choose(2, 0.0) == [("a.0", 0), ("b.0", None)]


def test_a_group_that_never_began_made_nobodys_weights_out_of_date(
    store: tuple[Any, int], chooser: Membership
) -> None:
    was(store, 0, ["a.0", "b.0"], True)
    was(store, 1, ["a.0", "n.0"], False)
    here(store, 2, [("n.0", None), ("b.0", (0, 1)), ("a.0", (0, 0))])
    assert chooser.formation.choose(2, 0.0) == [("a.0", 0), ("b.0", 1), ("n.0", None)]


def test_a_group_that_has_not_begun_when_it_is_passed_over_never_will(
    store: tuple[Any, int], chooser: Membership
) -> None:
    """Its members may be alive, taken for lost by one who was stopped itself: else there would be two swarms."""
    was(store, 0, ["a.0", "b.0"], True)
    store[0].set(members_key(1), json.dumps([["a.0", 0]]))
    here(store, 2, [("b.0", (0, 1))])
    assert chooser.formation.choose(2, 0.0) == [("b.0", 1)]
    with pytest.raises(PeerLost, match="another rank has given up the round"):
        votes_on(store, 1, vote_key(1))[0].decide(patient)


def test_a_member_that_is_alive_and_has_not_come_is_waited_for(
    store: tuple[Any, int], chooser: Membership
) -> None:
    was(store, 0, ["a.0", "b.0"], True)
    chooser.formation.register()  # it learns who was there
    assert chooser.formation.members == ["a.0", "b.0"]
    here(store, 1, [("a.0", (0, 0))])
    assert chooser.formation.choose(1, 0.0) == []
    dies(store, "b.0")
    until(lambda: chooser.formation.choose(1, 0.0))
    assert chooser.formation.choose(1, 0.0) == [("a.0", 0), ("c.0", None)]


def test_fresh_weights_never_follow_those_of_one_who_is_silent_but_not_dead(
    store: tuple[Any, int], chooser: Membership
) -> None:
    was(store, 0, ["a.0", "b.0"], True)
    chooser.formation.register()
    dies(store, "a.0")
    until(lambda: {"a.0", "b.0"} <= chooser.link.lost(1.0))  # b.0 gave one sign of life
    assert chooser.formation.choose(1, 1e9) == []


def test_when_all_who_held_anything_are_dead_the_others_begin_anew(
    store: tuple[Any, int], chooser: Membership
) -> None:
    was(store, 0, ["a.0", "b.0"], True)
    was(store, 1, ["a.0"], True)
    chooser.formation.register()
    dies(store, "a.0", "b.0")
    until(lambda: chooser.formation.choose(2, 1e9))
    assert chooser.formation.choose(2, 1e9) == [("c.0", None)]


def test_when_all_who_held_the_newest_are_dead_those_who_hold_the_next_newest_go_on(
    store: tuple[Any, int], chooser: Membership
) -> None:
    was(store, 0, ["a.0", "b.0"], True)
    was(store, 1, ["a.0"], True)  # b.0 was stopped meanwhile
    chooser.formation.register()
    dies(store, "a.0")
    until(lambda: "a.0" in chooser.link.lost(1.0))
    assert chooser.formation.choose(2, 1e9) == []  # b.0 may come back
    here(store, 2, [("b.0", (0, 1))])
    until(lambda: chooser.formation.choose(2, 1e9))
    assert chooser.formation.choose(2, 1e9) == [("b.0", 1), ("c.0", None)]


def test_the_first_wait_for_each_other(store: tuple[Any, int]) -> None:
    first = member(store, "a.0", start=2)
    first.formation.register()
    assert first.formation.choose(0, 0.0) == []
    assert first.formation.choose(0, 1e9) == [("a.0", None)]  # one did not come
    here(store, 0, [("B.0", None)])
    assert first.formation.choose(0, 0.0) == [("B.0", None), ("a.0", None)]
    first.leave()


def test_a_store_that_nobody_serves_is_named() -> None:
    with pytest.raises(CommError, match=r"worker a\.0: the store at 127\.0\.0\.1:1 cannot be reached: .*probably"):
        Membership(TcpAddress("127.0.0.1", 1), "a.0", patience=0.5)


# Real processes.


def test_the_flags_are_there_before_anybody_asks(store: tuple[Any, int], chooser: Membership) -> None:
    assert [store[0].add(key, 0) for key in (STOP, FINISH, OVER)] == [0, 0, 0]
    chooser.end()
    assert store[0].add(OVER, 0) == 1


def test_a_watch_keeps_what_is_known_of_a_name(store: tuple[Any, int]) -> None:
    heart = Heartbeat(connect("127.0.0.1", store[1], SOON), "a", ["a", "b"], 0.02)
    store[0].add("swarmstep/alive/b", 1)
    heart.start()
    until(lambda: heart.silent(0.2) == [1])
    heart.watch(["b", "a"], "flag")
    assert heart.silent(0.2) == [0]
    dies(store, "b")
    store[0].add("flag", 1)
    until(lambda: heart.flagged() and heart.dead() == {"b"})
    heart.watch(["a"])
    assert (heart.silent(0.0), heart.dead(), heart.flagged()) == ([], set(), False)
    heart.stop()


def test_an_answer_about_others_says_nothing_of_those_who_are_watched_by_now(store: tuple[Any, int]) -> None:
    """One who was stopped would take everybody for silent otherwise, if it goes on in another group."""
    heart = Heartbeat(connect("127.0.0.1", store[1], SOON), "a", ["b"])
    asked = heart._names
    heart._answered, heart._seen = heart._answered - 1.0, [heart._seen[0] - 1.0]  # it was stopped for a second
    heart.watch(["b", "c"])
    heart._record(asked, [b"2", b"0"])
    assert heart.silent(0.5) == []
    heart._record(heart._names, [b"", b"1", b"0", b"0"])
    assert heart.silent(0.5) == [0]
    heart.reset()
    assert heart.silent(0.5) == []


def test_who_waits_for_the_conclusion_notices_that_its_heartbeats_have_ended(store: tuple[Any, int]) -> None:
    """Found by the simulation: after a store that was away it waited for a first rank that was dead."""
    served, port = store
    served.add("swarmstep/alive/0.0", 1)
    member = Membership(TcpAddress("127.0.0.1", port), "1.0", patience=SOON)
    try:
        member.formation.members = ["0.0", "1.0"]
        member.link.heartbeat.watch(["0.0", "1.0"])
        member.link.heartbeat.stop()
        member.link.heartbeat.error = RuntimeError("no answer")
        served.add("swarmstep/dead/0.0", 1)
        assert member.conclude(lambda: 7) == 7
    finally:
        member.leave()
