"""The program of all recipes here: it may be stopped, killed, and started again with more or fewer workers.

python examples/clusters/program.py FOLDER [STEPS]     # 2 workers in this process; on clusters: docs/clusters.md

It needs RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, and a FOLDER that all machines see. It goes on from the
newest checkpoint there. On SIGTERM all workers write one after the next round, and end with exit code 130. If one
is lost, the others end with 5.
"""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from swarmstep import DistComm, Every, Group, InformedSwarm, Options, Round, Synchronizer, simulate
from swarmstep.checkpoint.loader import load_any
from swarmstep.checkpoint.saver import save
from swarmstep.errors import CheckpointError, PeerLost
from swarmstep.launch.stopping import StopRequest

PACE = float(os.environ.get("PACE", "0"))  # seconds that a step takes longer, as a larger model's would

Save = Callable[[int, dict[str, Any]], object]


def batch(step: int, rank: int, size: int):
    """Return a worker's batch: points of three rings, its own share of what all workers draw at this step."""
    generator = torch.Generator().manual_seed(step)
    ring = torch.randint(3, (32 * size,), generator=generator)[rank::size]
    angle = torch.rand(32 * size, generator=generator)[rank::size] * 6.2832
    radius = ring + 1 + 0.2 * torch.randn(32 * size, generator=generator)[rank::size]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1), ring


def probe(module: nn.Module, step: int) -> torch.Tensor:
    """Return the loss of each held-out example."""
    inputs, targets = batch(10**6, 0, 8)
    return cross_entropy(module(inputs), targets, reduction="none")


def train(
    comm: Group, states: list[dict[str, Any]], save: Save, asked: Callable[[], bool], steps: int = 480
) -> str | None:
    """Train up to `steps`; return the result in words, or None where a worker was asked to stop.

    Args:
        comm: the group.
        states: what was saved by all workers of an earlier group, in rank order; empty at the start.
        save: called by all workers after every fifth round, with the step and this worker's state.
        asked: whether this worker is to stop.
        steps: of each worker.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    sync = Synchronizer(model, InformedSwarm(when=Every(16)), comm, Options(probe=probe))
    if states:
        before = len(states)
        own = states[comm.rank if comm.rank < before else 0]  # who is new begins as worker 0 is
        model.load_state_dict(own["model"])
        optimizer.load_state_dict(own["optimizer"])
        sources = [rank if rank < before else None for rank in range(comm.size)]
        sync.load_state_dict(own["sync"], sources if comm.size != before else [])
        print(f"rank {comm.rank} of {comm.size}: on from step {sync.steps}, saved by {before}", flush=True)
    while sync.steps < steps:
        inputs, targets = batch(sync.steps, comm.rank, comm.size)
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        event = sync.step(loss)
        optimizer.zero_grad()
        time.sleep(PACE)
        if isinstance(event, Round):
            stop = bool(comm.gather(torch.tensor([float(asked())])).any())  # all stop where one is asked to
            if stop or event.number % 5 == 0:
                parts = {"model": model, "optimizer": optimizer, "sync": sync}
                save(sync.steps, {name: part.state_dict() for name, part in parts.items()})
            if stop:
                return None
    sync.finish()
    inputs, targets = batch(10**6 + 1, 0, 8)
    accuracy = float((model(inputs).argmax(1) == targets).float().mean())
    weights = b"".join(value.numpy().tobytes() for value in model.state_dict().values())
    digest = hashlib.sha256(weights).hexdigest()[:16]
    return f"{comm.size} workers, {sync.steps} steps, accuracy {accuracy:.3f}, weights {digest}"


def main(folder: Path, steps: int = 480) -> int:
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        print(simulate(lambda comm: train(comm, [], lambda *_: None, lambda: False, steps), workers=2)[0])
        return 0
    stopping = StopRequest()
    with stopping:
        comm = DistComm.from_env(exact=True)  # exact: the same bits as in one process
        states: list[dict[str, Any]] = []
        try:
            states = load_any(folder)[1]
        except CheckpointError as error:  # none, or the first of all was not written by all
            print(f"rank {comm.rank}: from the start: {error}", file=sys.stderr, flush=True)
        try:
            said = train(comm, states, lambda step, own: save(folder, step, own, comm), stopping.requested, steps)
        except PeerLost as error:  # whoever started this worker starts all again
            print(f"rank {comm.rank}: {error}", file=sys.stderr, flush=True)
            return error.exit_code
        if comm.rank == 0:
            print(said or "stopped with a checkpoint; the same command goes on from it", flush=True)
        comm.close()
    return 0 if said else 130


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
