"""Weights of which N in M are not zero, trained from dense ones.

::

    nm(model, 2, 4)  # before the optimizer and the Synchronizer are made
    ...              # train as ever, under any strategy
    small = export(model)
"""

from swarmstep.comm.nm_codec import keep_largest
from swarmstep.sparse.nm import NM, export, flips, nm

__all__ = ["NM", "export", "flips", "keep_largest", "nm"]
