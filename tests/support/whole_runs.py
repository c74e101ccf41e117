"""Whole runs of every strategy: which are compared, in process, in real processes and resumed.

Each table has all combinations; those that reach no code which others do not reach are slow.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from typing import Any

import pytest

from helpers import FOR_WEIGHTS, TIMINGS, TRIGGERS, VARIANTS, Run, run, timed
from swarmstep import simulate
from swarmstep.comm.codecs import Bfloat16, Codec, Int4, Int8, LowRank, NMCodec, SparseLoCo, TopK

WORKERS = 3  # odd, so that no vector splits evenly
STEPS = 7
CODECS: dict[str, Codec] = {"bfloat16": Bfloat16(), "int8": Int8(64), "int4": Int4(16), "topk": TopK(0.3)}
CODECS |= {"nm": NMCodec(2, 4), "rank": LowRank(2), "sparseloco": SparseLoCo(kept=3, chunk=16, clip=True)}
# One of each kind: a mean, a broadcast, a probe, an outer optimizer, neighbours, hosts.
KINDS = ("local-sgd", "pso-ps", "swarm", "diloco", "gossip-ring", "hierarchical")
EVERY_TIMING = "pso-ps"
# One for each way to use the wire: KINDS, and all rows, pairs, gradients, now or beside a step.
WIRES = (*KINDS, "median", "noloco", "osp", "synchronous")


def fast_if(fast: bool, *values: Any) -> Any:
    """Return a case of `pytest.mark.parametrize` that is slow unless `fast`."""
    return pytest.param(*values, marks=[] if fast else [pytest.mark.slow])


def fast_ones(fast: Collection[str], names: Iterable[str]) -> list[Any]:
    """Return a case for each name; those that are not in `fast` are slow."""
    return [fast_if(name in fast, name) for name in names]


def _timings(variant: str) -> list[str]:
    if ":" in variant:
        return ["warm-up", "vote"]
    return TIMINGS if variant in FOR_WEIGHTS else [*TRIGGERS]


# Every strategy with every timing; its options with those that reach most code.
PLAIN = [
    fast_if(t == "warm-up" or v in (EVERY_TIMING, "synchronous") or (v, t) == ("osp", "every-1"), v, t)
    for v in VARIANTS
    for t in _timings(v)
]
# Rounds that travel while training goes on.
DELAYED = [fast_if(name in KINDS, name, "every-3") for name in FOR_WEIGHTS]
DELAYED += [fast_if(n == EVERY_TIMING, n, t) for n in KINDS for t in ("vote", "warm-up")]
# Rounds that travel, with coded vectors.
CODED = [fast_if(name in KINDS, name, "int8") for name in FOR_WEIGHTS]
CODED += [fast_if(name == "pso-ps", name, "topk") for name in ("local-sgd", "pso-ps", "swarm")]
OWN_MEANS = ("nm", "rank", "sparseloco")
CODED += [fast_if(name == "local-sgd", name, codec) for name in ("local-sgd", "swarm") for codec in OWN_MEANS]


@functools.cache
def simulated(
    variant: str, timing: str, steps: int = STEPS, workers: int = WORKERS, resume: int = 0, **given: Any
) -> list[Run]:
    """Return what each worker's run left in process; `given` are options."""
    strategy = timed(VARIANTS[variant], timing)
    return simulate(lambda comm: run(comm, strategy, steps, resume, **given), workers)
