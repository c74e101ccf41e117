"""Accelerate's own loop in a swarm, in place of accelerate.local_sgd.LocalSGD:

torchrun --nproc-per-node 2 examples/with_accelerate.py
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from swarmstep import DistComm, Every, LocalSGD, Round
from swarmstep.integrations.accelerate import synchronized
from swarmstep.integrations.alone import alone


def main() -> None:
    torch.set_num_threads(1)
    comm = DistComm.from_env()
    with alone():  # the Accelerator knows nothing of the other workers: no DistributedDataParallel
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=3e-3))
    data = torch.Generator(accelerator.device).manual_seed(comm.rank)  # each worker its own

    def report(event: object) -> None:
        if isinstance(event, Round) and comm.rank == 0 and event.number % 5 == 0:
            print(f"step {event.step}: losses {', '.join(f'{loss:.4f}' for loss in event.losses)}")

    # The one added line; at the end of the block the model is the swarm's result.
    with synchronized(accelerator, model, optimizer, LocalSGD(when=Every(8)), comm, on_event=report) as swarm:
        for _ in range(400):
            inputs = torch.randn(32, 20, generator=data, device=accelerator.device)
            with accelerator.accumulate(model):
                loss = nn.functional.mse_loss(model(inputs), inputs[:, :3].sum(dim=1, keepdim=True))
                accelerator.backward(loss)
                swarm.add_loss(loss / accelerator.gradient_accumulation_steps)  # for the report
                optimizer.step()
                optimizer.zero_grad()
    comm.close()


if __name__ == "__main__":
    main()
