"""Elastic groups of real processes that train a tiny model, and points in the code at which one of them is struck.

The test process plays the supervisor: it serves the store, starts the workers, says who is dead, starts others in
their place, and asks all to finish. Each worker reports over a pipe of its own, which no other can leave locked.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import hashlib
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any, get_type_hints

import torch
from torch import nn

import swarmstep.elastic.formation as formation_module
from forking import CONTEXT
from helpers import Momentum, batch, network, probe
from swarmstep import (
    PSOPS,
    DiLoCo,
    Every,
    EveryTime,
    GASLoC,
    GossipRing,
    GradientChange,
    InformedSwarm,
    LocalSGD,
    Options,
    Strategy,
    Synchronizer,
    fault_points,
)
from swarmstep.comm.codecs import Int8
from swarmstep.comm.process_groups import serve_store
from swarmstep.comm.store import store_at
from swarmstep.elastic.membership import Membership
from swarmstep.errors import PeerLost, RunOver
from swarmstep.runtime.flat import Flat
from swarmstep.seeding import mix
from swarmstep.signal import Event, MembershipChange, Round

WORKERS = 3
PERIOD = 4  # local steps between two rounds
SOON = 60.0  # seconds; far beyond what any wait here should take
LR = 0.1

# name -> (strategy, options of the Synchronizer)
METHODS: dict[str, tuple[Strategy, dict[str, Any]]] = {
    "swarm": (InformedSwarm(when=Every(PERIOD)), {}),
    "swarm:probe": (InformedSwarm(when=Every(PERIOD)), {"probe": probe, "probe_cost": 0.1}),
    "swarm:int8": (InformedSwarm(when=Every(PERIOD)), {"codec": Int8()}),
    "swarm:delay": (InformedSwarm(when=Every(PERIOD)), {"delay": 2}),
    "pso-ps": (PSOPS(when=Every(PERIOD)), {}),
    "pso-ps:historical": (PSOPS(when=Every(PERIOD), best="historical"), {}),
    "pso-ps:delay": (PSOPS(when=Every(PERIOD)), {"delay": 2}),
    "diloco": (DiLoCo(when=Every(PERIOD)), {}),
    "diloco:fragments": (DiLoCo(when=Every(PERIOD)), {"fragments": 2, "delay": 1}),
    "diloco:eager": (DiLoCo(when=Every(PERIOD)), {"delay": 2, "eager": True}),
    "gasloc": (GASLoC(graph="hypercube", when=Every(PERIOD)), {}),
    "local-sgd": (LocalSGD(when=Every(PERIOD)), {}),
    "local-sgd:int8-delay": (LocalSGD(when=Every(PERIOD)), {"codec": Int8(), "delay": 2}),
    "local-sgd:states": (LocalSGD(when=Every(PERIOD)), {"optimizer_state": {"momentum_buffer": 2}}),
    "gossip": (GossipRing(when=Every(PERIOD)), {}),
    "local-sgd:vote": (LocalSGD(when=GradientChange(threshold=0.05, window=2)), {}),
    "local-sgd:seldom": (LocalSGD(when=GradientChange(threshold=1e9, window=2)), {}),
    "local-sgd:vote-delay": (LocalSGD(when=GradientChange(threshold=0.05, window=2)), {"delay": 2}),
}

TIMED = {"local-sgd:time": (LocalSGD(when=EveryTime(0.02, together=False)), dict[str, Any]())}
STEP = "step"  # before each `sync.step` of the training loop here

# Where a worker can be struck: in a round, in a change of membership, and at the end.
IN_A_ROUND = (
    STEP,
    fault_points.ROLL_CALL,
    fault_points.COLLECTIVE,
    fault_points.COLLECTIVE_STARTED,
    fault_points.EXCHANGED,
    fault_points.COUNTED,
    fault_points.VOTED,
    fault_points.DECIDED,
    fault_points.LANDING,
    fault_points.LANDED,
)
IN_A_CHANGE = (
    fault_points.LEAVING,
    fault_points.REGISTERING,
    fault_points.REGISTERED_PLACE,
    fault_points.REGISTERED,
    fault_points.CHOOSING,
    fault_points.FORMING,
    fault_points.FORMED,
    fault_points.HANDING_OVER,
    fault_points.HANDED_OVER,
    fault_points.MEETING,
    fault_points.SPLITTING,
    fault_points.CONNECTING_PART,
    fault_points.ENTERING,
    fault_points.ENTERED,
)
AT_THE_END = (fault_points.FINISHING, fault_points.RESULT)


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to a worker the `nth` time it reaches a point.

    "kill", "stop", "hang" with its heart beating, "deaf": stopped, and then its connections fail, "tell": nothing.
    """

    point: str
    nth: int = 1
    kind: str = "kill"


@dataclasses.dataclass(frozen=True)
class Plan:
    """What all workers of a world are told.

    `steps`: after which they finish (None: when asked to). `loud`: whether rounds carry the weights themselves.
    """

    method: str = "local-sgd"
    start: int = WORKERS
    steps: int | None = None
    silence: float = 2.0
    patience: float = 40.0
    gathering: float = 3.0
    loud: bool = False
    width: int = 8  # of the model: one that differs is another model
    pace: float = 0.001
    after: Callable[[Membership], Any] | None = None  # called at the end, before it leaves


class History:
    """What must follow every change of membership alike on all members, as a sampler must."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def follow(self, events: list[Event]) -> None:
        self.epochs += [event.epoch for event in events if isinstance(event, MembershipChange)]

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": [*self.epochs]}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.epochs = saved["epochs"]


class Worker:
    """One process's training: what `simulate` does in the oracle, too."""

    def __init__(self, plan: Plan, comm: Any, slot: int) -> None:
        strategy, options = {**METHODS, **TIMED}[plan.method]
        self.slot = slot
        self.model = (
            network(slot) if plan.width == 8 else nn.Sequential(nn.Linear(5, plan.width), nn.Linear(plan.width, 3))
        )
        self.optimizer = Momentum(self.model.parameters())
        self.history = History()
        if "optimizer_state" in options:
            options = {**options, "optimizers": [self.optimizer]}
        options = {**options, "stateful": {"optimizer": self.optimizer, "history": self.history}}
        self.sync = Synchronizer(self.model, strategy, comm, Options(**options))

    def local_step(self) -> torch.Tensor:
        """Do the optimizer step that follows; the data are those of the slot, whatever the rank is."""
        step = self.sync.steps + 1
        torch.default_generator.manual_seed(mix(0, step, self.slot))
        inputs, labels = batch(0, step, self.slot)
        loss = nn.functional.cross_entropy(self.model(inputs), labels)
        self.model.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def weights(self) -> torch.Tensor:
        return Flat(self.model, views=False).read()


def shared_digest(states: Any) -> str:
    """Return a digest of what all members of a group must know alike."""
    known = hashlib.sha256()
    for state in states:
        for name, hint in get_type_hints(type(state), include_extras=True).items():
            if hint.__metadata__[0] in ("shared", "per worker"):
                known.update(name.encode() + getattr(state, name).contiguous().numpy().tobytes())
    return known.hexdigest()[:16]


class Reporter:
    """Says what happens in a worker, and strikes it."""

    def __init__(self, end: Connection, fault: Fault | None, loud: bool) -> None:
        self.end, self.fault, self.loud = end, fault, loud
        self.lock = threading.Lock()
        self.reached: dict[str, int] = {}

    def say(self, *words: Any) -> None:
        # As bytes: a tensor would be sent as a file of this process, which may have ended when it is looked for.
        with self.lock:
            self.end.send_bytes(pickle.dumps((time.monotonic(), *words)))

    def at(self, point: str) -> None:
        """Pass a point; the end of a worker that is to be struck here."""
        with self.lock:
            self.reached[point] = self.reached.get(point, 0) + 1
            due = self.fault and (self.fault.point, self.fault.nth) == (point, self.reached[point])
        if not due:
            return
        assert self.fault
        kind = self.fault.kind
        self.say("struck", kind)
        if kind == "hang":
            threading.Event().wait()
        if kind != "tell":
            os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        if kind == "deaf":  # its end of the collective has failed, the others' have not
            raise PeerLost("the connection broke")

    def hook(self, point: str, **what: Any) -> None:
        """Be called at each fault point: report what has happened, and pass the point."""
        if point == fault_points.LANDED:
            report, x = what["report"], what["x"].clone()
            digest = hashlib.sha256(x.numpy().tobytes()).hexdigest()[:16]
            states = shared_digest([what["state"]])
            self.say("round", report.number, report.step, report.members, digest, states, x if self.loud else None)
        elif point == fault_points.MEMBERSHIP_CHANGED:
            change, x = what["change"], what["x"].clone()
            self.say("change", dataclasses.replace(change, states=()), shared_digest(change.states), x)
        self.at(point)


def live(end: Connection, address: str, name: str, plan: Plan, fault: Fault | None) -> None:
    """Be a worker, to the end."""
    torch.set_num_threads(1)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # says on stderr where it is, when the test finds that it hangs
    reporter = Reporter(end, fault, plan.loud)
    try:
        with fault_points.interfering(reporter.hook):
            _train(reporter, address, name, plan)
    except RunOver as error:
        reporter.say("over", str(error))
    except BaseException as error:
        reporter.say("error", type(error).__name__, str(error), traceback.format_exc())


def _train(reporter: Reporter, address: str, name: str, plan: Plan) -> None:
    slot = int(name.split(".")[0])
    formation_module.START_WAIT = plan.gathering
    membership = Membership(
        store_at(address),
        name,
        start=plan.start,
        silence=plan.silence,
        patience=plan.patience,
        exact=True,
    )
    comm = membership.join()
    worker = Worker(plan, comm, slot)
    sync = worker.sync
    reporter.say("begun", sync.steps, sync.rounds, worker.weights())
    over = follow(worker, sync.events())
    while not over and sync.steps != plan.steps:
        loss = worker.local_step()
        reporter.at(STEP)
        event = sync.step(loss, lr=LR)
        over = follow(worker, [*([event] if event else []), *sync.events()])
        time.sleep(plan.pace)
    follow(worker, sync.finish())
    result = plan.after(membership) if plan.after else None
    reporter.say("done", sync.steps, sync.rounds, sync.committed, worker.weights(), result, worker.history.epochs)
    membership.end()
    membership.leave()


def follow(worker: Worker, events: list[Event]) -> bool:
    """Follow the changes of membership; return whether a round has decided that the run ends."""
    worker.history.follow(events)
    decisions = [event.decision for event in events if isinstance(event, Round)]
    return any(decision.finish or decision.stop for decision in decisions)


@dataclasses.dataclass
class Told:
    """What one worker has said."""

    begun: tuple[Any, ...] = ()
    rounds: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)  # number, step, members, digests, x
    changes: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)  # (change, digest, x)
    order: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)  # everything, with the time
    struck: float | None = None  # when
    done: tuple[Any, ...] = ()
    over: str = ""
    error: tuple[Any, ...] = ()
    gone: bool = False  # its process has ended
    code: int | None = None  # with this exit code


class World:
    """The supervisor: a store, which exists at `address` or is served here, and workers that report."""

    def __init__(self, plan: Plan, address: str = "") -> None:
        self.plan = plan
        self.store: Any
        if address:
            self.store, self.address = store_at(address).connect(SOON), address
        else:
            self.store, port = serve_store()
            self.address = f"127.0.0.1:{port}"
        self.told: dict[str, Told] = {}
        self.processes: dict[str, Any] = {}
        self.ends: dict[Any, str] = {}
        self.stopped: set[str] = set()
        self.killed: set[str] = set()

    def __enter__(self) -> World:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes.values():
            if process.is_alive():
                process.kill()
            process.join()
        for end in self.ends:
            end.close()

    def start(self, *names: str, fault: Fault | None = None, plan: Plan | None = None) -> None:
        for name in names:
            here, there = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=live, args=(there, self.address, name, plan or self.plan, fault))
            process.start()
            there.close()
            self.processes[name], self.ends[here], self.told[name] = process, name, Told()

    def declare_dead(self, name: str) -> None:
        """Say what a supervisor says of a process that has ended."""
        self.store.add(f"swarmstep/dead/{name}", 1)

    def signals(self, name: str, number: int) -> None:
        os.kill(self.processes[name].pid, number)
        if number == signal.SIGKILL:
            self.killed.add(name)

    def thaw(self, name: str) -> None:
        self.stopped.discard(name)
        os.kill(self.processes[name].pid, signal.SIGCONT)

    def ask(self, what: str) -> None:
        """Ask all to "stop" or to "finish"."""
        self.store.add(f"swarmstep/{what}", 1)

    def listen(self, seconds: float) -> list[str]:
        """Take in what is said within so much time, at once when something is; return who ended meanwhile."""
        ended: list[str] = []
        for end in wait(list(self.ends), seconds):
            name = self.ends[end]
            try:
                self._note(name, pickle.loads(end.recv_bytes()))
            except (EOFError, OSError):
                end.close()
                del self.ends[end]
                self.processes[name].join(SOON)
                self.told[name].gone, self.told[name].code = True, self.processes[name].exitcode
                ended.append(name)
        return ended

    def _note(self, name: str, words: tuple[Any, ...]) -> None:
        told, (when, what, *rest) = self.told[name], words
        told.order.append(words)
        if what == "round":
            told.rounds.append(tuple(rest))
        elif what == "change":
            told.changes.append(tuple(rest))
        elif what == "begun":
            told.begun = tuple(rest)
        elif what == "struck":
            told.struck = when
            place = {"stop": self.stopped, "deaf": self.stopped, "kill": self.killed}.get(rest[0], set())
            place.add(name)
        elif what == "done":
            told.done = tuple(rest)
        elif what == "over":
            told.over = rest[0]
        else:
            told.error = tuple(rest)

    def until(self, condition: Callable[[], Any], limit: float = SOON) -> None:
        """Listen until a condition on what has been told holds.

        Raises:
            TimeoutError: it does not come to hold, with what everybody said last.
        """
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(self.summary())
            self.listen(0.1)

    def ended(self, *names: str) -> Callable[[], bool]:
        """Return the condition that these have ended."""
        return lambda: all(self.told[name].gone for name in names)

    def newest(self) -> tuple[Any, ...]:
        """Return the last round anybody has reported: number, step, members, ..."""
        return max((told.rounds[-1] for told in self.told.values() if told.rounds), default=(0, 0, ()))

    def summary(self) -> str:
        """Return what everybody said last, for the message of a failure; those alive say where they are."""
        for process in self.processes.values():
            if process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
                process.join(0.5)
        lines = [f"finish asked: {self.store.check(['swarmstep/finish'])}"]
        for name, told in self.told.items():
            last = [
                (f"{when:.2f}", *(w for w in words if not isinstance(w, torch.Tensor)))
                for when, *words in told.order
            ]
            lines.append(f"{name} exit={self.processes[name].exitcode}: " + " | ".join(map(str, last[-4:])))
            lines += [told.error[-1]] if told.error else []
        return "\n".join(lines)
