"""PSO-PS with 4 workers next to averaging, no communication and the informed swarm, on the digits: `make demo`."""

import torch

from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.job import Job
from swarmstep.train.lockstep_coordinator import simulated
from swarmstep.workloads import load

torch.set_num_threads(1)
workload = load("digits")
print("1,437 handwritten digits, 4 workers, a round each 8 steps, 400 steps each, one seed\n")
print(f"{'':14}{'test accuracy':>14}{'test loss':>12}{'sent by a worker':>18}")
for strategy in ("pso-ps", "local-sgd", "independent", "swarm"):
    config = resolve(Config("digits", strategy=strategy), workload)
    summary = simulated(config, workload, Job(quiet=True, keep=False))
    print(
        f"{strategy:14}{summary['test_accuracy']:14.3f}{summary['test_loss']:12.3f}"
        f"{summary['bytes_sent_per_worker'] / 1e6:15.2f} MB"
    )
