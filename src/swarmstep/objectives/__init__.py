"""What a model is trained for, where that is more than a function of outputs and targets: losses with state."""

from swarmstep.objectives.auc import AUCMinMax, auc

__all__ = ["AUCMinMax", "auc"]
