"""Rounds that travel while training goes on, in real processes."""

from __future__ import annotations

import copy
import dataclasses
import os
import signal
import subprocess
import sys
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import VARIANTS, Trainer, Vote, same
from launched import Launched
from pool import Pool
from swarmstep import (
    Comm,
    DistComm,
    Every,
    InformedSwarm,
    LocalSGD,
    Options,
    Strategy,
    Synchronizer,
    simulate,
)
from swarmstep.comm.process_groups import serve_store
from swarmstep.errors import CommError, NotFinite, PeerLost

WORKERS = 3


def uneven(comm: Comm, strategy: Strategy, given: dict[str, Any]) -> list[Tensor]:
    """Rank r takes 5 + 2r steps: those who have finished answer the others' rounds."""
    trainer = Trainer(strategy, comm, **given)
    for _ in range(5 + 2 * comm.rank):
        trainer.step()
    trainer.sync.finish()
    return [trainer.weights()]


@pytest.mark.parametrize("name", ["local-sgd", "swarm", "pso-ps", "gossip-ring"])
@pytest.mark.parametrize("given", [{"delay": 2}, {"delay": 2, "fragments": 2}], ids=["delay", "fragments"])
def test_workers_may_end_at_different_steps(pool: Pool, name: str, given: dict[str, Any]) -> None:
    strategy = dataclasses.replace(VARIANTS[name], when=Every(2))
    found = simulate(lambda comm: uneven(comm, strategy, given), WORKERS)
    assert all(weights[0].isfinite().all() for weights in found)
    assert same(pool.run(uneven, strategy, given, workers=WORKERS), found)


def test_voters_may_end_at_different_steps(pool: Pool) -> None:
    strategy = LocalSGD(when=Vote())
    found = simulate(lambda comm: uneven(comm, strategy, {"delay": 2}), WORKERS)
    assert same(pool.run(uneven, strategy, {"delay": 2}, workers=WORKERS), found)


def test_what_goes_wrong_on_the_way_is_said_when_it_lands(pool: Pool) -> None:
    found = pool.run(poisoned, workers=WORKERS)
    assert found == simulate(poisoned, WORKERS)
    for landed, said in found:
        assert landed == 5
        assert "step 3: the weights of rank 1 are not finite, or 1000 times" in said


def poisoned(comm: Comm) -> tuple[int, str]:
    trainer = Trainer(LocalSGD(when=Every(3)), comm, delay=2)
    try:
        for step in range(9):
            loss = trainer.local_step()
            if comm.rank == 1 and step == 2:
                with torch.no_grad():
                    next(trainer.model.parameters()).fill_(torch.nan)
            trainer.sync.step(loss)
    except NotFinite as error:
        return trainer.done, str(error)
    return 0, ""


def test_training_goes_on_while_a_round_travels(pool: Pool) -> None:
    """Rank 1 starts the round only after rank 0, which has started it, has taken another step."""
    assert pool.run(ahead, workers=2) == [[None, None, None, 2, None, 4]] * 2


def ahead(comm: Comm) -> list[int | None]:
    sync = Synchronizer(nn.Linear(2, 2), LocalSGD(when=Every(2)), comm, Options(delay=4))
    reports = []
    for step in range(1, 7):
        reports.append(sync.step(1.0))
        if step == (3 if comm.rank == 0 else 1):
            comm.gather(torch.zeros(1))
    sync.finish()
    return [report and report.step for report in reports]


def test_a_group_that_breaks_leaves_the_weights_as_they_are(pool: Pool) -> None:
    for before, after, said in pool.run(broken, workers=2):
        assert "step 5" in said
        assert "every rank had weight 0" in said
        assert same(before, after)


def broken(comm: Comm) -> tuple[Tensor, Tensor, str]:
    """A round of a strategy whose collective fails everywhere."""
    trainer = Trainer(LocalSGD(when=Every(3)), comm, delay=2)
    trainer.sync._rounds.group.fragments[0].comm = Broken(comm)  # type: ignore[assignment]
    for _ in range(4):
        trainer.step()
    loss = trainer.local_step()
    before = trainer.weights()
    with pytest.raises(CommError) as caught:
        trainer.sync.step(loss)
    return before, trainer.weights(), str(caught.value)


class Broken:
    def __init__(self, comm: Comm) -> None:
        self.rank, self.size = comm.rank, comm.size

    def recycle(self) -> None:
        pass

    def mean(self, x: Tensor, weight: float = 1.0) -> tuple[Tensor, float]:
        raise CommError("mean: every rank had weight 0")


def in_flight(end: Any) -> None:
    """Rank 1 starts no further round and is killed; the others train on until theirs is to land."""
    comm = DistComm.from_env("gloo", silence=60.0)
    trainer = Trainer(LocalSGD(when=Every(2)), comm, delay=2)
    for _ in range(5):
        trainer.step()
    trainer.sync.state_dict()  # the round of step 4 has arrived
    comm.gather(torch.zeros(1))
    if comm.rank == 1:
        end.send("gone")
        threading.Event().wait()
    for _ in range(2):
        trainer.step()
    loss = trainer.local_step()
    before = trainer.weights()
    try:
        trainer.sync.step(loss)
    except PeerLost as error:
        end.send((str(error), same(before, trainer.weights())))
    comm.close()


def test_a_peer_that_is_killed_is_named_when_the_round_lands() -> None:
    with Launched(in_flight, 3) as world:
        assert world.hears(1) == "gone"
        world.signals(1, signal.SIGKILL)
        for rank in (0, 2):
            said, kept = world.hears(rank)
            assert said.startswith(f"step 8: rank {rank}: lost rank 1 while in ")
            assert kept
        assert [world.ends(rank) for rank in (0, 2)] == [0, 0]


def test_a_program_that_fails_with_a_round_under_way_ends_with_its_own_error() -> None:
    program = (
        "import torch\nfrom swarmstep import *\nc = DistComm.from_env('gloo')\n"
        "s = Synchronizer(torch.nn.Linear(500, 500), LocalSGD(when=Every(2)), c, Options(delay=100))\n"
        "for i in range(3): s.step(1.0)\nraise KeyError('mine')"
    )
    store, port = serve_store()
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    group |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env={**os.environ, **group, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, said = process.communicate(timeout=60)
            assert process.returncode == 1, said
            assert said.rstrip().endswith("KeyError: 'mine'")
    finally:
        for process in processes:
            process.kill()
    del store


def kept(comm: Comm) -> bool:
    """A checkpoint taken with a round under way does not change when training goes on."""
    trainer = Trainer(InformedSwarm(when=Every(2)), comm, delay=1)
    for _ in range(4):
        trainer.step()
    saved = trainer.sync.state_dict()
    before = copy.deepcopy(saved)
    for _ in range(6):
        trainer.step()
    return same(saved, before)


def test_a_checkpoint_stays_as_it_was(pool: Pool) -> None:
    assert pool.run(kept, workers=2) == [True, True]
