"""A deterministic simulation of elastic groups: the real code of membership on a simulated store, network, clock.

What runs is `Membership`, `Formation`, `CommitVote`, `StoreLink` and `Heartbeat` as they are. Simulated are the
clock (nobody waits), the store (each call may be slow, unanswered, or carried out late), the connections of a
group, the supervisors, and the training: each worker does what `Regrouping` and `Rounds` do, with the list of the
rounds that its weights contain in the place of weights. A seed says what goes wrong, and when.

Run it with: python tests/support/simulated_membership.py --seeds 100000
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import math
import multiprocessing
import random
import threading
import time
from collections.abc import Callable, Generator
from typing import Any
from unittest import mock

from swarmstep import fault_points
from swarmstep.comm import heartbeat
from swarmstep.comm.epoch import Epoch
from swarmstep.comm.group import Decision
from swarmstep.comm.heartbeat import Heartbeat, dead_key
from swarmstep.elastic import commit_vote, formation, membership, store_link
from swarmstep.elastic.commit_vote import COMMIT
from swarmstep.elastic.keys import FINISH
from swarmstep.elastic.membership import Membership
from swarmstep.errors import CommError, PeerLost, RunOver

SILENCE = 1.0  # simulated seconds, as all that follow
POLL = 0.1  # between two looks
LIMIT = 1.5  # after which a call of the store is given up, where it ever is
FAULTS, CALM = 20.0, 60.0  # how long things go wrong, and how long it may then take until all train together
STEP = 0.3  # between two rounds
UNKNOWN = 10.0  # longest time for which a supervisor says nothing of a death
PART = 100  # seeds that a process plays at a time
State = tuple[Any, ...]  # what weights contain: where they come from, then each round


class Killed(BaseException):
    """The process of this worker has ended."""


class Violation(Exception):
    """An invariant does not hold."""


class Worker:
    """One simulated process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.baton = threading.Semaphore(0)
        self.ticket = 0  # of the event by which it goes on
        self.dead = self.ended = False
        self.stopped = self.cut = 0.0  # until when
        self.meeting: Meeting | None = None
        self.rank = 0
        self.pending: State = ()  # what it will hold if the vote that it takes part in says so


class Meeting:
    """The connections of one group."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.here: set[int] = set()
        self.gone: set[int] = set()
        self.rows: list[dict[int, Any]] = []


class World:
    """All that happens for one seed.

    Attributes:
        now: seconds.
        violation: what was violated (None: nothing).
        commits: how many votes have committed.
        trace: of all commits, as text.
    """

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.violation: str | None = None
        self.commits, self.trace = 0, list[str]()
        self.over = False
        self.values: dict[str, bytes] = {}  # the store's
        self.outage = 0.0  # of the store, until when
        self.limited = (
            self.rng.random() < 0.6
        )  # as with etcd; else calls wait until they are answered, as over TCP
        self.resumes = self.rng.random() < 0.3
        self.nervous = self.rng.choice([0.0, 0.02, 0.05])  # probability of a fault at a point of the code
        self.slots = self.rng.randint(1, 5)
        self.incarnations = [0] * self.slots
        self.workers: dict[str, Worker] = {}
        self.current: Worker | None = None
        self.main = threading.Semaphore(0)
        self.threads: list[threading.Thread] = []
        self.meetings: dict[str, Meeting] = {}
        self.groups: dict[int, list[str]] = {}  # by epoch
        self.told: set[str] = set()  # the keys that the store has been told of
        self.tip: State = ()  # what the last commit says the weights contain
        self.tip_holders: set[str] = set()
        self.holders: set[str] = set()  # who has ever been in a group that has begun
        self._events: list[tuple[float, int, Any]] = []
        self._count = 0
        more = random.Random(f"{seed} finish")  # apart: what happens for earlier seeds stays as it was found
        self.finish = more.uniform(1.0, FAULTS) if more.random() < 0.3 else math.inf  # when all are to finish
        self.starved = more.random() < 0.3  # whether workers and calls also stand still for seconds
        self.concluded: State = ()  # what the one had who did what one does for all at the end
        self.done = False  # a worker has ended in peace: nobody is started any more

    # The clock, and who runs.

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Call something at a time."""
        self._count += 1
        heapq.heappush(self._events, (when, self._count, event))

    def wake(self, worker: Worker, when: float) -> None:
        """Have a worker go on at a time, and not when it was to before."""
        worker.ticket = ticket = self._count + 1
        self.at(when, lambda: self._resume(worker, ticket))

    def _resume(self, worker: Worker, ticket: int) -> None:
        if worker.ticket != ticket or worker.ended:
            return
        if worker.stopped > self.now and not (worker.dead or self.over):
            self.wake(worker, worker.stopped)
            return
        self.current = worker

    def sleep(self, seconds: float) -> None:
        """Have the current worker wait, while others run."""
        me = self.current
        assert me
        self._check(me)
        if self.starved and self.now < FAULTS and self.rng.random() < 0.03:
            seconds += self.rng.expovariate(0.5)
        self.wake(me, self.now + max(seconds, 0.01) * (1.0 + self.rng.random()))
        following = self._next()
        if following is not me:
            (following.baton if following else self.main).release()
            me.baton.acquire()
        self._check(me)

    def _check(self, me: Worker) -> None:
        if me.dead or self.over:
            raise Killed

    def _next(self) -> Worker | None:
        """Let time pass until a worker is to go on; return it, or None at the end."""
        self.current = None
        while self._events and self.current is None:
            when, _, event = heapq.heappop(self._events)
            self.now = max(self.now, when)
            event()
        return self.current

    def run(self) -> None:
        """Let it all happen."""
        for slot in range(self.slots):
            self.at(self.rng.random(), lambda slot=slot: self.start(slot))
        for _ in range(self.rng.randint(1, 8)):
            self.at(self.rng.uniform(1.0, FAULTS), self.strike)
        if self.finish < FAULTS:
            self.at(self.finish, lambda: self._tell(FINISH))
        self.at(FAULTS, self.heal)
        self.at(FAULTS + CALM, self.judge)
        following = self._next()
        if following:
            following.baton.release()
            self.main.acquire()
        for thread in self.threads:
            thread.join()

    def start(self, slot: int) -> None:
        """Start the next worker of a slot."""
        if self.over or self.done:
            return
        worker = Worker(f"{slot}.{self.incarnations[slot]}")
        self.incarnations[slot] += 1
        self.workers[worker.name] = worker
        thread = threading.Thread(target=self._live, args=(worker,), daemon=True)
        self.threads.append(thread)
        thread.start()
        self.wake(worker, self.now)

    def _live(self, worker: Worker) -> None:
        worker.baton.acquire()
        try:
            self._check(worker)
            with fault_points.interfering(lambda point, **what: self.point()):
                train(self, worker)
            self.leave_in_peace(worker)
        except Killed:
            pass
        except RunOver:
            if not self.concluded:
                self.violate("a worker takes the run for over, and nobody has concluded it")
            self.leave_in_peace(worker)
        except CommError:
            self.kill(worker)
        except Violation as error:
            self.violate(str(error))
        except BaseException as error:
            self.violate(f"{type(error).__name__}: {error}")
        worker.ended = True
        following = self._next()
        (following.baton if following else self.main).release()

    def violate(self, what: str) -> None:
        """Note that an invariant does not hold, and end."""
        self.violation = self.violation or f"{what} (at {self.now:.1f} s)"
        self.end()

    def end(self) -> None:
        """End all workers."""
        self.over = True
        self._events = []
        for worker in self.workers.values():
            self.wake(worker, self.now)

    # What goes wrong.

    @property
    def living(self) -> list[Worker]:
        return [worker for worker in self.workers.values() if not worker.dead]

    def reaches(self, worker: Worker) -> bool:
        """Return whether a worker reaches the store."""
        return self.now >= max(worker.cut, self.outage)

    def point(self) -> None:
        """Be called at each fault point of the code that a worker runs."""
        me = self.current
        if me and self.now < FAULTS and self.rng.random() < self.nervous:
            self.strike(me)
            self.sleep(0.0)

    def strike(self, victim: Worker | None = None) -> None:
        """Let something go wrong."""
        rng, seconds = self.rng, min(self.rng.expovariate(0.25), FAULTS - self.now)
        if victim is None and rng.random() < 0.15:
            self.outage = self.now + seconds
            return
        if victim is None and not self.living:
            return
        victim = victim or rng.choice(self.living)
        kind = rng.choice(["kill", "kill", "stop", "stop", "stop", "cut", "cut", "lose"])
        if kind == "stop":
            victim.stopped = self.now + seconds
        elif kind == "cut":
            victim.cut = self.now + seconds
        elif kind == "kill" or len(self.living) > 1:
            self.kill(victim, told=kind == "kill" or rng.random() < 0.5)

    def kill(self, worker: Worker, *, told: bool = True) -> None:
        """End a worker; its supervisor says so and starts another one, unless it has died with it."""
        if worker.dead:
            return
        worker.dead = True
        self.leave(worker)
        self.wake(worker, self.now)
        if self.done and not self.living:
            self.end()
        if told:
            self.at(self.now + self.rng.uniform(0.0, 1.0), lambda: self._tell(dead_key(worker.name)))
            slot = int(worker.name.partition(".")[0])
            self.at(self.now + self.rng.uniform(0.5, 3.0), lambda: self.start(slot))

    def _tell(self, key: str) -> None:
        if self.now < self.outage:
            self.at(self.outage, lambda: self._tell(key))
        else:
            self.values[key] = b"1"
            self.told.add(key)

    def leave_in_peace(self, worker: Worker) -> None:
        """Note that a worker has ended because the run is over."""
        worker.dead = self.done = True
        self.leave(worker)
        self.at(self.now + self.rng.uniform(0.0, 1.0), lambda: self._tell(dead_key(worker.name)))
        if not self.living:
            self.end()

    def heal(self) -> None:
        """Have everything work from now on."""
        self.outage = 0.0
        for worker in self.living:
            worker.stopped = worker.cut = 0.0
            self.wake(worker, self.now)

    def judge(self) -> None:
        """Say that it took too long, unless the state is gone with those who held it."""
        held = {worker.name for worker in self.living} & self.tip_holders
        # Whoever is of a group that was decided may hold its weights, as far as the others can know.
        may_hold = self.holders.union(name for group in self.groups.values() for name in group)
        untold = [name for name in may_hold if dead_key(name) not in self.told]
        if held or self.done or not untold:
            what = "end" if self.finish < FAULTS else "train together"
            self.violate(f"no progress: {sorted(w.name for w in self.living)} do not {what}")
        self.end()

    def leave(self, worker: Worker) -> None:
        """Close the connections of a worker."""
        if worker.meeting:
            worker.meeting.gone.add(worker.rank)
        worker.meeting = None

    # What must hold.

    def committed(self, epoch: int, number: int) -> None:
        """Check what a verdict in the store means for the weights of all."""
        names = self.groups[epoch]
        found = {self.workers[name].pending for name in names}
        if len(found) != 1:
            raise Violation(f"epoch {epoch}: members commit different states")
        state = found.pop()
        self.commits += 1
        self.trace.append(f"{self.now:.3f} {epoch} {number} {','.join(names)} {len(state)}")
        alive = {worker.name for worker in self.living}
        if state[: len(self.tip)] != self.tip and self.tip_holders & alive:
            raise Violation(
                f"epoch {epoch}, vote {number} of {names}: {state[-3:]} does not follow {self.tip[-3:]}, which "
                f"{sorted(self.tip_holders & alive)} hold: a commit is lost, or two groups commit"
            )
        fresh = state == (("fresh", epoch),)
        if fresh and not self.resumes and self.holders & alive:
            raise Violation(
                f"epoch {epoch}: fresh weights, while {sorted(self.holders & alive)} hold trained ones"
            )
        self.tip, self.tip_holders = state, {*names}
        self.holders |= {*names}

    def landed(self, comm: Group, number: int) -> None:
        """Note that a worker has changed its weights."""
        key = f"swarmstep/epoch/{comm.epoch}/vote/{number}"
        verdict = self.values.get(key)
        if verdict is not None and not verdict.startswith(COMMIT.encode()):
            raise Violation(f"{key}: a worker takes {verdict!r} for a commit")
        if (
            self.now >= FAULTS
            and self.finish > FAULTS
            and {*comm.names} == {worker.name for worker in self.living}
        ):
            self.end()


class SimulatedStore:
    """One worker's connection to the store; see `swarmstep.comm.store.Store`."""

    def __init__(self, world: World, worker: Worker) -> None:
        self.world, self.worker = world, worker
        self.at_once = False  # for a heartbeat, which nobody waits for

    def _do(self, task: Callable[[], Any]) -> Any:
        """Carry out a task once: now, or later, or never, with an answer or without."""
        world, rng = self.world, self.world.rng
        if self.at_once:
            return task()
        lateness = 1.0 if world.starved and world.now < FAULTS else 10.0
        if rng.random() < 0.1:
            world.sleep(rng.expovariate(lateness))
        result, fate = None, rng.choice(["never", "late", "in time"]) if world.limited else "in time"
        if world.reaches(self.worker):
            result, fate = task(), "done"
            if rng.random() < 0.1:
                world.sleep(rng.expovariate(lateness))  # the answer is late
        deadline = world.now + LIMIT if world.limited else math.inf
        while not world.reaches(self.worker):
            world.sleep(POLL)
            if world.now > deadline:
                if fate == "late":
                    world.at(world.now + rng.expovariate(0.5), lambda: self._late(task))
                raise RuntimeError("no answer")
        return result if fate == "done" else task()

    def _late(self, task: Callable[[], Any]) -> None:
        try:
            if not self.world.over:
                task()
        except Violation as error:
            self.world.violate(str(error))

    def add(self, key: str, amount: int) -> int:
        return self._do(lambda: self._add(key, amount))

    def _add(self, key: str, amount: int) -> int:
        total = int(self.world.values.get(key, b"0")) + amount
        self.world.values[key] = str(total).encode()
        return total

    def set(self, key: str, value: str) -> None:
        self._do(lambda: self.world.values.__setitem__(key, value.encode()))

    def get(self, key: str) -> bytes:
        return self.multi_get([key])[0]

    def check(self, keys: list[str]) -> bool:
        return self._do(lambda: all(key in self.world.values for key in keys))

    def multi_get(self, keys: list[str]) -> list[bytes]:
        while not self.check(keys):
            self.world.sleep(POLL)
        return self._do(lambda: [self.world.values.get(key, b"") for key in keys])  # a late one finds none

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        return self._do(lambda: self._compare_set(key, expected, desired.encode()))

    def _compare_set(self, key: str, expected: str, desired: bytes) -> bytes:
        values = self.world.values
        if values.get(key, b"") != expected.encode():
            return values.get(key, expected.encode())
        values[key] = desired
        parts = key.split("/")
        if parts[-2] == "vote" and desired.startswith(COMMIT.encode()):
            self.world.committed(int(parts[2]), int(parts[-1]))
        if parts[-1] == "members":
            self.world.groups[int(parts[2])] = [name for name, _ in json.loads(desired)]
        return desired

    def list_keys(self) -> list[str]:
        return self._do(lambda: [*self.world.values])

    def delete_key(self, key: str) -> bool:
        return self._do(lambda: self.world.values.pop(key, None) is not None)


class SimulatedAddress:
    """Where a worker's store is; see `swarmstep.comm.store.Address`."""

    host, advice = "nowhere", "it is simulated"

    def __init__(self, world: World, worker: Worker) -> None:
        self.world, self.worker = world, worker

    def connect(self, patience: float) -> SimulatedStore:
        deadline = self.world.now + patience
        while not self.world.reaches(self.worker):
            if self.world.now > deadline:
                raise RuntimeError("no answer")
            self.world.sleep(POLL)
        return SimulatedStore(self.world, self.worker)


class SimulatedHeartbeat(Heartbeat):
    """A `Heartbeat` that the simulated clock drives."""

    def start(self) -> None:
        self.reset()
        self._store.at_once = True
        self._tick()

    def _tick(self) -> None:
        world, worker = self._store.world, self._store.worker
        if worker.dead or self._stop.is_set() or world.over:
            return
        if world.now < worker.stopped:
            world.at(worker.stopped, self._tick)
            return
        if world.reaches(worker):
            self._beat()
        else:
            self._asked = self._asked or world.now
            if world.limited and world.now - self._asked > LIMIT:
                self.error = RuntimeError("no answer")
                return
        world.at(world.now + self.period, self._tick)


class SimulatedGroups:
    """What is used of `swarmstep.comm.process_groups`."""

    FORM_TIMEOUT, FORM_EACH = 2.0, 0.4

    def form(self, store: Any, name: str, place: tuple[int, int], limit: float, patience: float) -> None:
        world, (rank, size) = now_running(), place
        me, deadline = world.current, world.now + limit
        assert me
        meeting = world.meetings.setdefault(name, Meeting([""] * size))
        me.meeting, me.rank = meeting, rank
        while world.now < me.cut or len(meeting.here | {rank}) < size:
            if world.now >= me.cut:
                meeting.here.add(rank)
            if meeting.gone or world.now > deadline:
                raise RuntimeError("a member did not come")
            world.sleep(POLL)
        meeting.here.add(rank)

    def dissolve(self) -> None:
        world = now_running()
        if world.current:
            world.leave(world.current)


class Group:
    """One worker's end of a group, in the place of a `DistComm`."""

    def __init__(self, *, exact: bool, silence: float, patience: float, epoch: Epoch) -> None:
        self.world, self.membership = now_running(), epoch.membership
        me = self.world.current
        assert me
        assert me.meeting
        self.me, self.meeting, self.rank = me, me.meeting, me.rank
        self.epoch, self.names, self.sources = epoch.number, epoch.names, epoch.sources
        self._vote = epoch.membership.vote("", len(self.names), first=True)
        self._calls = 0

    def exchange(self, value: Any) -> list[Any]:
        """Return the values of all members, in the order of their ranks."""
        world, rows, began = self.world, self.meeting.rows, self.world.now
        self._calls += 1
        while len(rows) < self._calls:
            rows.append({})
        row = rows[self._calls - 1]
        while True:
            if world.now >= self.me.cut:
                row[self.rank] = value
                if len(row) == len(self.names):
                    return [row[rank] for rank in range(len(row))]
            missing = self.meeting.gone - {*row}
            if missing or (self.meeting.gone and world.rng.random() < 0.5):
                raise PeerLost("a peer has closed its connection")
            self.check(world.now - began)
            world.sleep(POLL)

    def check(self, waited: float) -> None:
        trouble = self.membership.trouble()
        if trouble:
            raise PeerLost(trouble)

    def decide(self, state: State) -> Decision:
        """Vote for holding a state."""
        self.me.pending = state
        return self._vote.decide(self.check)


def train(world: World, worker: Worker) -> None:
    """Be a worker: what `Regrouping` and `Rounds` do, without weights."""
    address: Any = SimulatedAddress(world, worker)
    member = Membership(address, worker.name, start=world.slots, silence=SILENCE, patience=1e6)
    member.resumes = world.resumes
    comm: Any = member.join()
    state: State = ()
    while True:
        try:
            state = _enter(world, comm, state)
            number, renew = 1, False
            while not renew:
                world.sleep(STEP * world.rng.random())
                if {*comm.exchange(state)} != {state}:
                    raise Violation(f"epoch {comm.epoch}: members of one group hold different states")
                following = (*state, (comm.epoch, number))
                decision = comm.decide(following)
                renew, state = decision.renew, following
                world.landed(comm, number)
                number += 1
                if decision.finish:
                    comm.decide(state)  # as `Rounds.finish` does
                    return _conclude(world, member, comm, state)
        except PeerLost:
            pass
        comm = member.renew()


def _enter(world: World, comm: Group, state: State) -> State:
    rows = comm.exchange(state)
    base: State = (("fresh", comm.epoch),)
    if comm.sources:
        held = [row for row, source in zip(rows, comm.sources, strict=True) if source is not None]
        if len({*held}) != 1:
            raise Violation(f"epoch {comm.epoch}: those who hold the newest state hold different ones")
        base = held[0]
    comm.decide(base)
    world.landed(comm, 0)
    return base


def _conclude(world: World, member: Membership, comm: Group, state: State) -> None:
    """Do what a worker does whose run is over."""

    def task() -> None:
        world.sleep(STEP * world.rng.random())
        world.point()
        if state[: len(world.tip)] != world.tip:
            raise Violation(f"worker {member.name} concludes the run with {state[-3:]}, not {world.tip[-3:]}")
        world.concluded = state

    with contextlib.suppress(PeerLost):
        comm.exchange(0)  # the mean figures
    member.conclude(task)
    member.leave()


class _Clock:
    def monotonic(self) -> float:
        return now_running().now

    def sleep(self, seconds: float) -> None:
        now_running().sleep(seconds)


_world: World | None = None


def now_running() -> World:
    assert _world
    return _world


@contextlib.contextmanager
def simulated() -> Generator[None]:
    """Have the modules of membership use what is simulated here, within the block."""
    with contextlib.ExitStack() as stack:
        for module in (commit_vote, formation, heartbeat, membership):
            stack.enter_context(mock.patch.object(module, "time", _Clock()))
        for module in (formation, membership):
            stack.enter_context(mock.patch.object(module, "POLL", POLL))
        stack.enter_context(mock.patch.object(commit_vote, "LONGEST_PAUSE", POLL))
        stack.enter_context(mock.patch.object(formation, "START_WAIT", 6.0))
        stack.enter_context(mock.patch.object(formation, "RESTART_WAIT", 3.0))
        stack.enter_context(mock.patch.object(membership, "process_groups", SimulatedGroups()))
        stack.enter_context(mock.patch.object(membership, "DistComm", Group))
        stack.enter_context(mock.patch.object(store_link, "Heartbeat", SimulatedHeartbeat))
        yield


def play(seed: int) -> World:
    """Let everything happen for one seed; to be called within `simulated`."""
    global _world
    _world = world = World(seed)
    world.run()
    return world


def first_violation(seeds: range) -> tuple[int, str] | None:
    """Return the first seed that violates an invariant, and how; None if there is none."""
    with simulated():
        return next(((seed, said) for seed in seeds if (said := play(seed).violation)), None)


def _played(seeds: range) -> tuple[int, list[str]]:
    with simulated():
        worlds = [(seed, play(seed)) for seed in seeds]
    found = [f"seed {seed}: {world.violation}" for seed, world in worlds if world.violation]
    return sum(world.commits for _, world in worlds), found


def main() -> None:
    """Play many seeds, and say what was found."""
    parser = argparse.ArgumentParser(description="Simulate elastic groups.")
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    given = parser.parse_args()
    began, last = time.monotonic(), given.first + given.seeds
    parts = [range(start, min(start + PART, last)) for start in range(given.first, last, PART)]
    seeds = commits = violations = 0
    with multiprocessing.get_context("spawn").Pool(given.processes) as pool:
        for part, (count, found) in zip(parts, pool.imap(_played, parts), strict=True):
            seeds, commits, violations = seeds + len(part), commits + count, violations + len(found)
            told = f"{seeds} seeds, {commits} commits, {violations} violations, {time.monotonic() - began:.0f} s"
            print("\n".join([*found, told]), flush=True)


if __name__ == "__main__":
    main()
