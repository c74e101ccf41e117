"""Networks that are trained layer by layer, without gradients, from examples that never leave their worker.

::

    def work(comm):
        inputs, targets = mine(comm.rank)  # [J, P], [J, Q]
        return fit(SSFNSettings(), inputs, targets, comm, ring(comm.size, 4))

    network = simulate(work, workers=20)[0]  # a torch.nn.Module
"""

from swarmstep.layerwise.builder import Builder, Layer, fit
from swarmstep.layerwise.least_squares import Admm, Ball, Ridge, closed_form
from swarmstep.layerwise.network import SSFN
from swarmstep.layerwise.settings import SSFNSettings
from swarmstep.strategies.parts.graph import Graph
from swarmstep.strategies.parts.named_graphs import complete, parse, ring

__all__ = [
    "SSFN",
    "Admm",
    "Ball",
    "Builder",
    "Graph",
    "Layer",
    "Ridge",
    "SSFNSettings",
    "closed_form",
    "complete",
    "fit",
    "parse",
    "ring",
]
