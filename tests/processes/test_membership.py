"""Real processes that die, stop, come back and join: who trains together, and from where they go on."""

from __future__ import annotations

import dataclasses
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from elastic_world import STEP, Fault, Plan, World
from forking import CONTEXT
from jobs import Gate
from launched import SOON
from swarmstep import fault_points
from swarmstep.checkpoint.saver import Saver
from swarmstep.comm.background import LAST_WAIT
from swarmstep.comm.process_groups import close_connections, serve_store
from swarmstep.comm.store import TcpAddress
from swarmstep.elastic.keys import candidates_key
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CommError


def regrouped(end: Any, port: int, folder: Any) -> None:
    """Regroup while a checkpoint is being written to a disk that blocks; say how long it took."""
    gate, saver = Gate(), Saver(folder)
    membership = Membership(TcpAddress("127.0.0.1", port), "a.0", silence=1.0, patience=SOON)
    comm = membership.join()
    comm.decide()
    saver.start(1, {"gate": gate}, 0, 1)
    task = comm.split(0).start(lambda: time.sleep(0.2))
    began = time.monotonic()
    following = comm.renew()
    end.send((time.monotonic() - began, following.epoch, saver.done, task.result()))
    gate.opened.set()
    saver.settle()
    end.send(saver.done)
    membership.leave()


def test_a_checkpoint_write_that_blocks_does_not_delay_regrouping(tmp_path: Path) -> None:
    _store, port = serve_store()
    here, there = CONTEXT.Pipe(duplex=False)
    process = CONTEXT.Process(target=regrouped, args=(there, port, tmp_path))
    process.start()
    there.close()
    seconds, *rest = here.recv()
    assert 0.1 < seconds < LAST_WAIT / 2  # the group's own task was waited for
    assert rest == [1, 0, None]
    assert here.recv() == 1
    process.join(SOON)
    assert process.exitcode == 0


def gathers_or_closes(end: Any, port: int, name: str) -> None:
    """Take part in a collective, or close the connections as one does who gives it up; stay until told to go."""
    membership = Membership(TcpAddress("127.0.0.1", port), name, start=5, patience=15.0)
    comm = membership.join()
    comm.decide()
    said = ""
    try:
        if comm.rank == 4:
            close_connections(dist.group.WORLD, range(5))
        else:
            comm.gather(torch.ones(3))
    except CommError as error:
        said = type(error).__name__
    end.send(said)
    end.recv()
    membership.leave()


def test_all_notice_that_one_has_given_up_a_collective_though_all_live_on() -> None:
    """Not only its neighbours: at the end of a run nobody forms a next group, by which the others would notice."""
    _store, port = serve_store()
    ends, processes = [], []
    for slot in range(5):
        here, there = CONTEXT.Pipe()
        ends.append(here)
        processes.append(CONTEXT.Process(target=gathers_or_closes, args=(there, port, f"{slot}.0")))
        processes[-1].start()
        there.close()
    said = [end.recv() for end in ends]
    for end, process in zip(ends, processes, strict=True):
        end.send("go")
        process.join(SOON)
    assert said == ["PeerLost"] * 4 + [""]


def begun(world: World, *names: str) -> None:
    world.until(lambda: all(world.told[name].begun for name in names))


def together(world: World, *names: str) -> None:
    """Wait until exactly these have made a round, in any order."""
    world.until(lambda: sorted(world.newest()[2]) == sorted(names))


def finish(world: World, *names: str) -> list[tuple[Any, ...]]:
    """Ask all to finish; return (steps, rounds, committed, weights, result) of each."""
    world.ask("finish")
    world.until(world.ended(*names))
    return [world.told[name].done for name in names]


def alike(done: list[tuple[Any, ...]]) -> bool:
    return len({row[:3] for row in done}) == 1 and all(torch.equal(row[3], done[0][3]) for row in done)


def kill(world: World, *names: str) -> None:
    for name in names:
        world.signals(name, signal.SIGKILL)
    world.until(world.ended(*names))
    for name in names:
        world.declare_dead(name)


@pytest.mark.parametrize("method", ["swarm", "local-sgd:time"])
def test_down_to_one_and_up_again_with_two_who_join_at_once(method: str) -> None:
    with World(Plan(method)) as world:
        world.start("0.0", "1.0", "2.0")
        begun(world, "0.0", "1.0", "2.0")
        kill(world, "0.0", "2.0")
        together(world, "1.0")
        world.start("0.1", "2.1")
        together(world, "0.1", "1.0", "2.1")
        done = finish(world, "0.1", "1.0", "2.1")
        assert alike(done)
        numbers = [row[0] for row in world.told["1.0"].rounds]
        assert numbers == list(range(1, done[0][1] + 1))


def test_one_who_has_just_joined_lets_in_the_next_at_the_same_step_as_the_others() -> None:
    with World(Plan("local-sgd", silence=4.0)) as world:
        world.start("0.0", "1.0")
        world.start("2.0", fault=Fault(fault_points.EXCHANGED, 3))
        world.until(world.ended("2.0"))
        world.start(
            "2.1", fault=Fault(fault_points.ENTERING, 1, "stop")
        )  # in time: the others wait for the silent one
        world.until(lambda: world.told["2.1"].struck)
        world.start("3.0")
        world.until(lambda: world.store.add(candidates_key(2), 0))
        world.thaw("2.1")
        together(world, "0.0", "1.0", "2.1", "3.0")
        assert alike(finish(world, "0.0", "1.0", "2.1", "3.0"))
        # The round that was due when 2.0 died is 2.1's first, and says that 3.0 waits.
        last = [world.told[name].changes[-1][0] for name in ("0.0", "1.0", "2.1", "3.0")]
        assert [(change.step, change.newcomer) for change in last] == [(12, False)] * 3 + [(12, True)]


def test_everybody_dead_and_others_begin_anew() -> None:
    with World(Plan("local-sgd", gathering=0.5)) as world:
        world.start("0.0", "1.0", "2.0")
        together(world, "0.0", "1.0", "2.0")
        kill(world, "0.0", "1.0", "2.0")
        world.start("0.1", "1.1")
        together(world, "0.1", "1.1")
        assert [world.told[name].begun[:2] for name in ("0.1", "1.1")] == [(0, 0)] * 2
        assert alike(finish(world, "0.1", "1.1"))


@pytest.mark.slow
def test_one_who_waits_for_members_that_are_silent_but_not_dead_says_so_after_patience() -> None:
    plan = Plan("local-sgd", silence=1.0)
    with World(plan) as world:
        world.start("0.0", "1.0", "2.0")
        together(world, "0.0", "1.0", "2.0")
        for name in ("0.0", "1.0", "2.0"):
            world.signals(name, signal.SIGSTOP)
        world.start("3.0", plan=dataclasses.replace(plan, patience=4.0))
        world.until(world.ended("3.0"))
        kind, said, _ = world.told["3.0"].error
        assert kind == "CommError"
        assert said.startswith("worker 3.0: no group was formed within 4 s")
        for name in ("0.0", "1.0", "2.0"):
            world.signals(name, signal.SIGCONT)
        assert alike(finish(world, "0.0", "1.0", "2.0"))


def test_a_newcomer_with_another_model_is_refused_and_the_others_go_on() -> None:
    plan = Plan("diloco", silence=1.0)
    with World(plan) as world:
        world.start("0.0", "1.0", "2.0")
        begun(world, "0.0", "1.0", "2.0")
        world.start("3.0", plan=dataclasses.replace(plan, width=5))
        world.until(world.ended("3.0"))
        kind, said, _ = world.told["3.0"].error
        assert kind == "Disagreement"
        assert "rank 3 has" in said
        world.declare_dead("3.0")
        seen = world.newest()[0]
        world.until(lambda: world.newest()[0] > seen + 2)
        done = finish(world, "0.0", "1.0", "2.0")
        assert alike(done)
        assert [row[0] for row in world.told["0.0"].rounds] == list(range(1, done[0][1] + 1))


def test_one_who_comes_when_all_steps_are_taken_is_told_so() -> None:
    with World(Plan("gossip", start=1, steps=8)) as world:
        world.start("0.0")
        world.until(world.ended("0.0"))
        world.start("0.1")
        world.until(world.ended("0.1"))
        assert world.told["0.1"].over == "worker 0.1: the run is over; there is nothing left to do"


def test_stopped_for_less_than_silence_nobody_is_lost() -> None:
    with World(Plan("pso-ps", silence=8.0)) as world:
        world.start("0.0", "1.0", "2.0")
        together(world, "0.0", "1.0", "2.0")
        world.signals("1.0", signal.SIGSTOP)
        for _ in range(10):
            world.listen(0.1)
        seen = world.newest()[0]
        world.signals("1.0", signal.SIGCONT)
        world.until(lambda: world.newest()[0] > seen + 2)
        assert alike(finish(world, "0.0", "1.0", "2.0"))
        assert not any(told.changes for told in world.told.values())


@pytest.mark.parametrize("method", ["swarm", pytest.param("local-sgd:time", marks=pytest.mark.slow)])
def test_one_who_was_given_up_comes_back_as_a_newcomer(method: str) -> None:
    with World(Plan(method, silence=1.0)) as world:
        world.start("0.0", "1.0", "2.0")
        together(world, "0.0", "1.0", "2.0")
        world.signals("0.0", signal.SIGSTOP)
        together(world, "1.0", "2.0")
        world.signals("0.0", signal.SIGCONT)
        together(world, "0.0", "1.0", "2.0")
        assert alike(finish(world, "0.0", "1.0", "2.0"))
        (change, *_) = world.told["0.0"].changes[-1]
        assert change.newcomer
        assert change.names == ("1.0", "2.0", "0.0")


@pytest.mark.parametrize(
    ("method", "point"),
    [
        ("local-sgd", fault_points.ROLL_CALL),
        pytest.param("local-sgd:time", STEP, marks=pytest.mark.slow),
    ],
)
def test_one_that_hangs_with_its_heart_beating_is_waited_for_up_to_patience(method: str, point: str) -> None:
    with World(Plan(method, silence=1.0, patience=3.0)) as world:
        world.start("0.0", "2.0")
        world.start("1.0", fault=Fault(point, 3, "hang"))
        world.until(world.ended("0.0", "2.0"))
        for name in ("0.0", "2.0"):
            kind, said, _ = world.told[name].error
            assert kind == "CommError"
            assert "alive" in said or "no group was" in said
            assert "to wait longer, raise patience" in said


def concluding(membership: Membership) -> str | None:
    """What one does at the end for all; the first to try it dies of it."""

    def task() -> str:
        if membership.name == "0.0":
            signal.raise_signal(signal.SIGKILL)
        return membership.name

    return membership.conclude(task)


def test_when_the_first_rank_dies_of_the_conclusion_the_next_one_draws_it() -> None:
    with World(Plan("local-sgd", steps=8, after=concluding)) as world:
        world.start("0.0", "1.0", "2.0")
        world.until(world.ended("0.0"))
        world.declare_dead("0.0")
        world.until(world.ended("1.0", "2.0"))
        assert [world.told[name].done[4] for name in ("1.0", "2.0")] == ["1.0", None]


@pytest.mark.parametrize("what", ["stop", "finish"])
def test_what_is_asked_for_reaches_all_at_the_same_round(what: str) -> None:
    with World(Plan("local-sgd")) as world:
        world.start("0.0", "1.0", "2.0")
        begun(world, "0.0", "1.0", "2.0")
        world.ask(what)
        world.until(world.ended("0.0", "1.0", "2.0"))
        assert alike([world.told[name].done for name in ("0.0", "1.0", "2.0")])


def test_those_who_have_heard_a_roll_to_its_end_wait_for_one_who_has_not() -> None:
    """With a voting trigger the roll is called at each step, and no vote says that all have heard it."""
    with World(Plan("local-sgd:seldom", steps=12, silence=10.0)) as world:
        world.start("0.0", "2.0", fault=Fault(fault_points.ROLL_CALL, 9, "tell"))
        world.start("1.0", fault=Fault(fault_points.ROLL_CALLED, 8, "deaf"))
        world.until(lambda: all(told.struck for told in world.told.values()))
        world.thaw("1.0")
        world.until(world.ended("0.0", "1.0", "2.0"))
        steps = {name: told.changes[0][0].step for name, told in world.told.items()}
        assert steps == {"0.0": 9, "1.0": 9, "2.0": 9}  # of the foremost: what all deal the examples by
        done = [told.done for told in world.told.values()]
        assert alike(done)
        assert done[0][:3] == (12, 3, 3)  # the trigger's first steps, before its windows are full
