"""MT-DAO's optimizer and generalized primal averaging: against NumPy, limit cases, saving, and misuse."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from helpers import network, same
from swarmstep import DiLoCo, Every, Synchronizer, simulate
from swarmstep.errors import UsageError
from swarmstep.objectives import PrimalAveraging, SlowMomentumAdam

CURVATURE, CENTRE = np.array([0.5, 1.0, 2.0]), np.array([1.0, -1.0, 0.3])


def gradients(p: nn.Parameter) -> None:
    p.grad = torch.tensor(CURVATURE) * (p.detach() - torch.tensor(CENTRE))


def point() -> nn.Parameter:
    return nn.Parameter(torch.zeros(3).double())


@given(st.floats(0, 0.9999), st.floats(0, 1), st.floats(0, 0.9999), st.floats(0, 0.5), st.integers(1, 8))
def test_its_steps_are_those_of_the_equations(b: float, w: float, b2: float, wd: float, steps: int) -> None:
    p, x, u, v = point(), np.zeros(3), np.zeros(3), np.zeros(3)
    optimizer = SlowMomentumAdam([p], lr=0.1, slow=b, weight=w, beta2=b2, weight_decay=wd)
    for t in range(1, steps + 1):
        gradients(p)
        optimizer.step()
        g = CURVATURE * (x - CENTRE)
        u, v = b * u + (1 - b) * g, b2 * v + (1 - b2) * g**2
        mixed = w * u / (1 - b**t) + (1 - w) * g
        x = (1 - 0.1 * wd) * x - 0.1 * mixed / (np.sqrt(v / (1 - b2**t)) + 1e-8)
    assert np.allclose(p.detach().numpy(), x, rtol=1e-9, atol=1e-9)


def trained(optimizer: Any, p: nn.Parameter, steps: int = 12) -> torch.Tensor:
    for _ in range(steps):
        gradients(p)
        optimizer.step()
    return p.detach().clone()


def test_all_momentum_is_adam_and_none_has_no_memory_of_gradients() -> None:
    p, q, r = point(), point(), point()
    found = trained(SlowMomentumAdam([p], 0.1, slow=0.9, weight=1.0, weight_decay=0.1), p)
    assert torch.allclose(found, trained(torch.optim.AdamW([q], 0.1, weight_decay=0.1), q), atol=1e-12)
    without = trained(SlowMomentumAdam([r], 0.1, weight=0.0), r)
    s = point()
    assert torch.allclose(without, trained(torch.optim.Adam([s], 0.1, betas=(0.0, 0.999)), s), atol=1e-12)


def test_saved_and_loaded_it_goes_on_bitwise() -> None:
    p, q = point(), point()
    whole = trained(SlowMomentumAdam([p], 0.1), p)
    first = SlowMomentumAdam([q], 0.1)
    trained(first, q, 5)
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    second = SlowMomentumAdam([q], 0.1)
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert same(trained(second, q, 7), whole)


@given(st.floats(0, 0.999), st.floats(0, 1), st.integers(1, 8))
def test_primal_averaging_is_its_three_lines(mx: float, my: float, steps: int) -> None:
    p, x, z = point(), np.zeros(3), np.zeros(3)
    optimizer = PrimalAveraging(torch.optim.SGD([p], lr=0.1), mx, my)
    for _ in range(steps):
        gradients(p)
        optimizer.step()
        y = my * x + (1 - my) * z
        z = z - 0.1 * CURVATURE * (y - CENTRE)
        x = mx * x + (1 - mx) * z
    assert np.allclose(p.detach().numpy(), my * x + (1 - my) * z, atol=1e-12)
    optimizer.eval()
    assert np.allclose(p.detach().numpy(), x, atol=1e-12)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_without_averaging_it_is_the_optimizer_bitwise(kind: Any) -> None:
    p, q = point(), point()
    assert same(trained(PrimalAveraging(kind([p], lr=0.1), 0.0, 0.0), p), trained(kind([q], lr=0.1), q))


def test_primal_averaging_saved_in_evaluation_goes_on_bitwise() -> None:
    p, q = point(), point()
    whole = trained(PrimalAveraging(torch.optim.AdamW([p], 0.1)), p)
    first = PrimalAveraging(torch.optim.AdamW([q], 0.1))
    trained(first, q, 5)
    first.eval()
    file, r = io.BytesIO(), point()
    torch.save(first.state_dict(), file)
    second = PrimalAveraging(torch.optim.AdamW([r], 0.1))
    second.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert same(r.detach(), q.detach())
    with pytest.raises(UsageError, match="call train"):
        second.step()
    second.train()
    assert same(trained(second, r, 7), whole)


def test_a_round_that_it_would_undo_is_named() -> None:
    def run(comm: Any) -> None:
        model = network(comm.rank)
        sync = Synchronizer(model, DiLoCo(when=Every(1)), comm)
        optimizer = PrimalAveraging(torch.optim.SGD(model.parameters(), 0.1))
        model(torch.ones(4, 5)).sum().backward()
        optimizer.step()
        sync.step(1.0)
        with pytest.raises(UsageError, match="it is for one worker"):
            optimizer.step()

    simulate(run, 2)


def test_what_is_out_of_range_is_named() -> None:
    for fields in (
        {"slow": 1.0},
        {"beta2": -0.1},
        {"weight": 1.1},
        {"lr": -1.0},
        {"eps": 0.0},
        {"weight_decay": -1.0},
    ):
        with pytest.raises(UsageError, match="SlowMomentumAdam: expected"):
            SlowMomentumAdam([point()], **fields)
    for given_ in ((1.0, 0.7), (-0.1, 0.7), (0.9, 1.1)):
        with pytest.raises(UsageError, match="PrimalAveraging: expected"):
            PrimalAveraging(torch.optim.SGD([point()], 0.1), *given_)


def test_the_mean_of_bfloat16_weights_does_not_stand_still() -> None:
    results: list[float] = []
    for dtype in (torch.float32, torch.bfloat16):
        p = nn.Parameter(torch.ones(8, dtype=dtype))
        optimizer = PrimalAveraging(torch.optim.SGD([p], lr=0.01))
        for _ in range(300):
            p.grad = p.detach().clone()
            optimizer.step()
        optimizer.eval()
        results.append(float(p[0].detach()))
    assert results[0] < 0.3
    assert abs(results[1] - results[0]) < 0.05
