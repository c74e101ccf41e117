"""Rare positives: four workers train a model for the AUC, meeting every 64 steps; then the same for cross-entropy.

python examples/rare_positives.py
"""

from __future__ import annotations

import torch
from torch import nn

from swarmstep import DiLoCo, Every, Group, Synchronizer, simulate
from swarmstep.data.sampler import BalancedSampler
from swarmstep.data.sharding import shard
from swarmstep.objectives import AUCMinMax, auc
from swarmstep.seeding import mix
from swarmstep.workloads import load
from swarmstep.workloads.imbalanced import cross_entropy

WORKERS, STEPS, BATCH, LR = 4, 320, 32, 0.3
digits = load("imbalanced:digits:0.1")  # 80 positives among 718 negatives
inputs, targets = digits.prepare(digits.train.inputs), digits.train.targets
shards = shard(targets, "classes:2", WORKERS, seed=0, classes=2)  # each class dealt out evenly


def train(comm: Group, criterion: nn.Module) -> float:
    """Be one worker; return the AUC of the common model on the test set."""
    torch.manual_seed(mix(0, "model"))
    both = nn.ModuleDict({"model": digits.models["mlp"](), "criterion": criterion})  # the rounds have both
    model = both["model"]
    optimizer = torch.optim.SGD(both.parameters(), lr=LR)
    sync = Synchronizer(both, DiLoCo(when=Every(64), momentum=0.5), comm)  # the dual gets none of the momentum
    sampler = BalancedSampler(shards[comm.rank], BATCH, 0, comm.rank, classes=2)
    for step in range(1, STEPS + 1):
        batch = sampler.batch(step)
        optimizer.zero_grad()
        loss = criterion(model(inputs[batch.indices]), batch.targets)
        loss.backward()
        optimizer.step()
        sync.step(loss, weight=BATCH)
    sync.finish()
    with torch.no_grad():
        return auc(model(digits.prepare(digits.test.inputs)), digits.test.targets)


class CrossEntropy(nn.Module):
    def forward(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(scores, labels)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for criterion in (AUCMinMax, CrossEntropy):
        found = simulate(lambda comm, kind=criterion: train(comm, kind()), WORKERS)
        print(f"{criterion.__name__:14} test AUC {found[0]:.4f}")
