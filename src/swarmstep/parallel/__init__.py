"""What is sequential, solved by parallel sweeps: chains over workers (`sweep`), and sampling (`sample`)."""

from __future__ import annotations

from swarmstep.parallel.chain import Swept, sweep
from swarmstep.parallel.sampling import Predict, Sampled, sample

__all__ = ["Predict", "Sampled", "Swept", "sample", "sweep"]
