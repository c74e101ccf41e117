"""Sweeps over real processes: bit for bit those of `simulate`."""

from __future__ import annotations

import pytest

from pool import Pool
from swarmstep import simulate
from sweeps import chain_gradients


@pytest.mark.parametrize("segments", [1, 4])
def test_sweeps_over_real_processes_equal_simulated_ones(pool: Pool, segments: int) -> None:
    real = pool.run(chain_gradients, segments, workers=3)
    simulated = simulate(lambda comm: chain_gradients(comm, segments), 3)
    for (*tensors, sweeps), (*others, same) in zip(real, simulated, strict=True):
        assert sweeps == same
        assert all(a.equal(b) for a, b in zip(tensors, others, strict=True))
