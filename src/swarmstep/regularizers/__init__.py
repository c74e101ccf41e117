"""Regularizers that change what a model computes while it is trained.

::

    drop = LocalDrop(lam=1e-3)
    drop.prepare(model)  # before the optimizer and the Synchronizer are made
    ...                  # after each sync.step(loss): drop.after_step(model, lr, step)
    plain = drop.finished(model)
"""

from swarmstep.regularizers.dropout import Dropout
from swarmstep.regularizers.localdrop import LocalDrop
from swarmstep.regularizers.spectrum import shrink_tail, tail, tail_by_column

__all__ = ["Dropout", "LocalDrop", "shrink_tail", "tail", "tail_by_column"]
