"""How much faster OSP is than averaging all gradients first, by the virtual clock: python benchmarks/osp_clock.py.

4 workers at 100 Mbit/s, a million parameters; rows: seconds of computation over those of a mean of all gradients.
"""

from __future__ import annotations

from swarmstep import OSP
from swarmstep.comm.metered import Call
from swarmstep.network.link import parse
from swarmstep.network.trace import Trace
from swarmstep.network.virtual_clock import VirtualClock
from swarmstep.strategies.osp import PIECE

PARAMETERS, WORKERS, STEPS = 1_000_000, 4, 200
SHARES = (0.25, 0.5, 0.8, 1.0)


def step_seconds(compute: float, osp: OSP) -> float:
    """Return the seconds of a step whose deferred part is exactly the share."""
    trace, deferred = Trace(), int(PARAMETERS * osp.share)
    urgent = [Call("gather", 56, WORKERS)]
    urgent += [Call("mean", 4 * (PARAMETERS - deferred), WORKERS)] if deferred < PARAMETERS else []
    for step in range(1, STEPS + 1):
        if osp.follows_up and step > 1:
            scores = Call("mean", 8 * -(-PARAMETERS // PIECE), WORKERS)
            trace.add(step - 1, step, [Call("mean", 4 * deferred, WORKERS), scores])
        trace.add(step, step, urgent)
    return float(VirtualClock(parse("100mbit"), WORKERS, compute).seconds(trace, STEPS)[-1]) / STEPS


def main() -> None:
    mean = step_seconds(0.0, OSP(0.0))
    print("compute / mean", *(f"share {share}" for share in SHARES), sep=" | ")
    for ratio in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0):
        whole = step_seconds(ratio * mean, OSP(0.0))
        gains = (whole / step_seconds(ratio * mean, OSP(share)) for share in SHARES)
        print(ratio, *(f"{gain:.2f}" for gain in gains), sep=" | ")


if __name__ == "__main__":
    main()
