"""A LightningModule in a swarm:

torchrun --nproc-per-node 2 examples/with_lightning.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from swarmstep import DistComm, Every, InformedSwarm
from swarmstep.integrations.alone import alone
from swarmstep.integrations.lightning import SwarmCallback


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], number: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.net(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    comm = DistComm.from_env()
    inputs = torch.randn(1024, 20, generator=torch.Generator().manual_seed(comm.rank))  # each worker its own
    examples = TensorDataset(inputs, inputs[:, :3].sum(dim=1, keepdim=True))
    # The one added line: the callback.
    swarm = SwarmCallback(InformedSwarm(when=Every(16)), comm)
    with alone():  # the Trainer knows nothing of the other workers
        trainer = pl.Trainer(
            max_epochs=5,
            devices=1,
            accelerator="auto" if torch.cuda.is_available() else "cpu",
            default_root_dir=folder / f"worker-{comm.rank}",  # each worker has checkpoints of its own
            callbacks=[swarm],
            logger=False,
            enable_progress_bar=False,
        )
    model = Regression()
    trainer.fit(model, DataLoader(examples, batch_size=32, shuffle=True))
    if comm.rank == 0:
        loss = float(nn.functional.mse_loss(model.net(inputs), examples.tensors[1]).detach())
        print(f"{swarm.sync.steps} steps, {swarm.sync.rounds} rounds; loss of the swarm's result {loss:.4f}")
    comm.close()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/with-lightning"))
