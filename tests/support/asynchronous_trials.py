"""Asynchronous nodes of real processes that are killed, stopped and started by events, and what must hold then."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import signal
import tempfile
import time
import traceback
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forking import CONTEXT
from swarmstep import fault_points
from swarmstep.asynchronous import (
    SERVER,
    AsGrad,
    LayUp,
    Links,
    Outer,
    Quorum,
    Work,
    run_peer,
    run_server,
    run_worker,
)
from swarmstep.comm.process_groups import serve_store
from swarmstep.errors import RunOver

WORKERS = 3
RESULTS, EVERY = 90, 7  # that the server takes, and between two checkpoints
STEPS = 60  # of each LayUp worker
SILENCE, PATIENCE, LIMIT = 0.5, 30.0, 60.0  # seconds; a hang, not a measurement
JOB, LONG_JOB = 0.003, 0.02  # seconds that a job takes, the latter where a silence is to be noticed in the run


@dataclasses.dataclass(frozen=True)
class Trial:
    """What happens in a run.

    Args:
        options: of `Quorum`, if `quorum` is among them, else of `AsGrad`; None: LayUp.
        size: of the vector; of 300,000 numbers, a kill may come in the middle of a message.
        acts: (number of results, or of the worker's own steps, what, to which node), what being "kill", "replace"
            (kill, and start another at once), "stop" (until the server has noticed, or has ended) or "start".
    """

    options: dict[str, Any] | None
    size: int
    acts: list[tuple[int, str, int]]

    @property
    def job(self) -> float:
        """Seconds that a job takes."""
        return LONG_JOB if self.options is None or any(what == "stop" for _, what, _ in self.acts) else JOB


def drawn(seed: int) -> Trial:
    """Return the trial of a seed."""
    rng = random.Random(seed)
    if seed % 5 == 4:
        acts = [
            (rng.randrange(3, STEPS - 10), rng.choice(["kill", "replace"]), w) for w in rng.sample(range(3), 2)
        ]
        return Trial(None, 0, acts)
    options: dict[str, Any] = {
        "assign": rng.choice(["pure", "random", "shuffled"]),
        "wait": rng.choice([1, 1, 2, 3]),
        "ignore": rng.choice([0, 0, 3]),
        "rule": rng.choice(["constant", "staleness", "rescaled"]),
        "seed": seed,
    }
    if seed % 5 == 3:
        options = {"quorum": options["wait"], "grace": rng.choice([0.0, 0.01])} | {
            name: options[name] for name in ("ignore", "rule")
        }
    acts: list[tuple[int, str, int]] = []
    away: set[int] = set()
    for number in sorted(rng.sample(range(2, RESULTS - 25), rng.choice([1, 2, 3, 4]))):
        what, node = rng.choice(["kill", "replace", "server", "stop"]), rng.randrange(WORKERS)
        if what == "server":
            acts.append((number, "replace", SERVER))
        elif node in away:
            away.discard(node)
            acts.append((number, "start", node))
        else:
            away |= {node} if what == "kill" else set()
            acts.append((number, what, node))
    acts += [(RESULTS - 25, "start", node) for node in sorted(away)[:1] if len(away) == WORKERS]
    return Trial(options, rng.choice([8, 8, 8, 300_000]), acts)


class Pull(Work):
    """Momentum on f_i = (x - i)^2 / 2; takes its time."""

    def __init__(self, pause: float) -> None:
        self.pause = pause
        self.seen: Counter[tuple[int, int]] = Counter()

    def __call__(self, x: Tensor, worker: int, number: int, results: int, memory: dict[str, Any]) -> Tensor:
        time.sleep(self.pause)
        self.seen[worker, number] += 1
        memory["m"] = 0.5 * memory.get("m", torch.zeros_like(x)) + 0.5 * (x - worker)
        return memory["m"]


def with_server(trial: Trial, pause: float) -> tuple[AsGrad | Quorum, Tensor]:
    assert trial.options is not None
    kind = Quorum if "quorum" in trial.options else AsGrad
    return kind(WORKERS, Pull(pause), Outer(0.1), **trial.options), torch.full((trial.size,), 9.0)


def layup(act: tuple[int, str, int] | None = None) -> tuple[LayUp, Tensor]:
    """LayUp on the same quadratics; the worker of the act kills itself at its step."""
    model = torch.nn.Linear(3, 1)

    def loss(model: torch.nn.Module, worker: int, step: int) -> Tensor:
        time.sleep(LONG_JOB)
        if act and (act[0], act[2]) == (step, worker):
            os.kill(os.getpid(), signal.SIGKILL)
        return sum((p - worker).square().sum() for p in model.parameters()) / 2  # type: ignore[return-value]

    return LayUp(WORKERS, model, loss, lr=0.1), torch.full((4,), 9.0)


def live(end: Connection, node: int, port: int, trial: Trial, folder: str, act: Any) -> None:
    """Be a node, to the end; say what happens."""
    torch.set_num_threads(1)

    def say(*words: Any) -> None:
        end.send_bytes(pickle.dumps(words))

    def hook(point: str, **what: Any) -> None:
        if point == fault_points.WORKERS_CHANGED and what["kind"] == "left":
            say("left", what["worker"])
        if point == fault_points.RESULT_TAKEN and what["number"] in {at for at, _, _ in trial.acts}:
            say("taken", what["number"])
            end.recv_bytes()

    try:
        method, x = with_server(trial, trial.job) if trial.options is not None else layup(act)
        address = "127.0.0.1", port
        with (
            Links(method, node, address, silence=SILENCE, patience=PATIENCE) as box,
            fault_points.interfering(hook),
        ):
            if node == SERVER:
                served = run_server(method, x, box, RESULTS, folder=Path(folder), every=EVERY)
                say("done", vars(served.state), served.order)
            else:
                state = run_worker(method, x, box) if method.has_server else run_peer(method, x, box, STEPS)
                say("done", vars(state), [])
    except RunOver:
        say("over", None, [])
    except BaseException:
        say("error", traceback.format_exc())


class Play:
    """One trial: this process starts the nodes and does what the trial says."""

    def __init__(self, trial: Trial) -> None:
        self.trial, self.due = trial, [*trial.acts]
        self.store, self.port = serve_store()
        self.processes: dict[int, Any] = {}
        self.ends: dict[int, Connection] = {}
        self.stopped: set[int] = set()
        self.done: dict[int, Any] = {}

    def run(self) -> dict[int, Any]:
        """Return what the nodes that were alive at the end have said; raise TimeoutError if it does not end."""
        nodes = [*range(WORKERS), *([SERVER] if self.trial.options is not None else [])]
        with tempfile.TemporaryDirectory() as self.folder:
            try:
                for node in nodes:
                    self.start(node, next((act for act in self.due if act[2] == node), None))
                deadline = time.monotonic() + LIMIT
                while self.ends:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"{self.trial}: {sorted(self.ends)} go on; stopped: {self.stopped}")
                    self.listen()
            finally:
                for process in self.processes.values():
                    process.kill()
                    process.join()
        return self.done

    def start(self, node: int, act: Any = None) -> None:
        here, there = CONTEXT.Pipe()
        self.processes[node] = CONTEXT.Process(
            target=live, args=(there, node, self.port, self.trial, self.folder, act)
        )
        self.processes[node].start()
        there.close()
        self.ends[node] = here

    def listen(self) -> None:
        ends = {end: node for node, end in self.ends.items()}
        for end in wait([*ends], 0.1):
            node = ends[end]  # type: ignore[index]
            try:
                what, *rest = pickle.loads(end.recv_bytes())  # type: ignore[union-attr]
            except (EOFError, ConnectionError):
                self.gone(node)
                continue
            if what == "error":
                raise AssertionError(f"{self.trial}: node {node}: {rest[0]}")
            if what in ("done", "over"):
                self.done[node] = rest
                if node == SERVER:
                    self.thaw()
            elif what == "left" and rest[0] in self.stopped:
                self.thaw(rest[0])
            elif what == "taken":
                self.act(rest[0])

    def thaw(self, *nodes: int) -> None:
        """Let these go on that were stopped; without arguments all."""
        for node in nodes or [*self.stopped]:
            self.stopped.discard(node)
            os.kill(self.processes[node].pid, signal.SIGCONT)

    def gone(self, node: int) -> None:
        """A process has ended: of LayUp's some kill themselves, and one of them may be replaced."""
        self.ends.pop(node).close()
        self.processes[node].join()
        acts = [act for act in self.due if act[2] == node and self.trial.options is None]
        if acts and node not in self.done:
            self.due.remove(acts[0])
            if acts[0][1] == "replace":
                self.start(node)

    def act(self, number: int) -> None:
        """Do what is due after so many results; the server waits until it is done, or is itself killed."""
        for act in [act for act in self.due if act[0] == number]:
            self.due.remove(act)
            _, what, node = act
            if what == "stop" and node in self.ends:
                os.kill(self.processes[node].pid, signal.SIGSTOP)
                self.stopped.add(node)
            if what in ("kill", "replace"):
                self.stopped.discard(node)
                self.processes[node].kill()
                self.processes[node].join()
                if node in self.ends:
                    self.ends.pop(node).close()
            if what in ("start", "replace"):
                self.start(node)
            if (what, node) == ("replace", SERVER):
                self.thaw()  # no server is there that would notice
                return
        self.ends[SERVER].send_bytes(b"go on")
