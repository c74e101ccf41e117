"""The cost of the informed swarm's tests: their share of each worker's time, in simulation.

python benchmarks/probe_cost.py
"""

import torch

from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import simulated
from swarmstep.workloads import load

torch.set_num_threads(1)
for name, model, steps in (("mnist", "mlp", 600), ("mnist", "lenet5", 600), ("cifar10", "cnn", 150)):
    workload = load(name)
    config = resolve(Config(name, model=model, every=16, steps=steps, eval_every=10**6), workload)
    summary = simulated(config, workload, Job(quiet=True, keep=False))
    share = config.workers * summary["probe_seconds"] / summary["seconds"]
    print(f"{name} {model}, {steps} steps: {share:.1%} of a worker's time")
