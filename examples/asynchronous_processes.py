"""Asynchronous DiLoCo with real processes: any of them may be killed, the server too, and is started again.

swarmstep run --workers 5 examples/asynchronous_processes.py     # 4 workers and the server; then kill -9 one
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep.asynchronous import SERVER, AsGrad, Displacement, Flat, Links, Outer, run_server, run_worker
from swarmstep.seeding import generator
from swarmstep.workloads import load

WORKERS, RESULTS = 4, int(os.environ.get("RESULTS", "400"))

digits = load("digits")
inputs, targets = digits.prepare(digits.train.inputs), digits.train.targets


def loss(model: nn.Module, worker: int, step: int) -> Tensor:
    """The loss of a batch from this worker's quarter of the examples."""
    drawn = torch.randint(len(inputs) // WORKERS, (32,), generator=generator(worker, step))
    batch = drawn * WORKERS + worker
    return cross_entropy(model(inputs[batch]), targets[batch])


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = digits.models["mlp"]()
    work = Displacement(model, loss, 8, lambda ps: torch.optim.SGD(ps, lr=0.05, momentum=0.9))
    method = AsGrad(WORKERS, work, Outer(lr=1 / WORKERS))
    x = Flat(model).read()
    with Links.from_env(method) as box:
        print(f"{'server' if box.node == SERVER else f'worker {box.node}'}: process {os.getpid()}", flush=True)
        if box.node != SERVER:
            run_worker(method, x, box)
            return
        # The store is this run's alone, so a server that is started again finds the folder of the one before it.
        folder = Path(tempfile.gettempdir()) / f"asynchronous-{os.environ['SWARMSTEP_STORE'].replace(':', '-')}"
        served = run_server(method, x, box, RESULTS, folder=folder, every=20)
    Flat(model).write(served.state.x)
    correct = model(digits.prepare(digits.test.inputs)).argmax(1) == digits.test.targets
    print(f"accuracy {correct.float().mean():.3f}; results of each worker: {served.state.entered}")
    print(f"dropped (worker, job, why): {served.state.dropped}", flush=True)


if __name__ == "__main__":
    main()
