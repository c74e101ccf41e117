"""What a model is trained for, where that is more than a function of outputs and targets, and how to get there."""

from swarmstep.objectives.auc import AUCMinMax, auc
from swarmstep.objectives.control import ControlVariates, MeanGradient
from swarmstep.objectives.gpa import PrimalAveraging
from swarmstep.objectives.palsgd import PseudoSynchronization
from swarmstep.objectives.proximal import GROWTH, ProximalStages, stage_of
from swarmstep.objectives.slow_momentum import SlowMomentumAdam

__all__ = [
    "GROWTH",
    "AUCMinMax",
    "ControlVariates",
    "MeanGradient",
    "PrimalAveraging",
    "ProximalStages",
    "PseudoSynchronization",
    "SlowMomentumAdam",
    "auc",
    "stage_of",
]
