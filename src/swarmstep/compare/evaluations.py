"""How often a compared run is evaluated, unless the user says it."""

from __future__ import annotations

from swarmstep.data.sharding import hold_out
from swarmstep.workloads import Workload

MOST, FEWEST = 20, 5  # evaluations in a run
SHARE = 0.5  # of the cost of training, which evaluations may cost together


def interval(workload: Workload, steps: int, batch: int, workers: int) -> int:
    """Return the local steps between two evaluations: so few that curves have 20 points, if that is cheap.

    Evaluations together may cost half as much as training; 5 points are made at any cost, and the interval is
    never longer than the workload's own. Costs are counted, not measured, so that the same command finds its
    cells again: a pass forward over an example costs 1, a step forward and back costs 3, and an evaluation is one
    pass over the validation and the test set.

    Args:
        workload: its data and its `eval_every`.
        steps: of the run.
        batch: examples per step and worker.
        workers: their number.
    """
    examples = len(hold_out(len(workload.train), 0).validation) + len(workload.test)
    affordable = round(examples / (SHARE * 3 * max(1, batch) * workers))
    return max(1, min(max(steps // MOST, affordable), steps // FEWEST, workload.defaults.eval_every))
