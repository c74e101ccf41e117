"""A chain cut over workers: exact after as many sweeps as segments, and gradients by the same sweeps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples import few
from swarmstep import Comm, simulate
from swarmstep.errors import Disagreement, UsageError
from swarmstep.parallel import Swept, sweep
from sweeps import chain_gradients, problem


def halves(h: Tensor, x: Tensor) -> Tensor:
    return 0.5 * h + x


def run(workers: int, length: int, guess: float, **options: Any) -> list[Swept]:
    """Sweep h = h / 2 + 1/2, of which 1 is the fixed point, from 1; the other ranks guess `guess`."""

    def work(comm: Comm) -> Swept:
        start = torch.full((1, 1), 1.0 if comm.rank == 0 else guess, dtype=torch.float64)
        inputs = torch.full((length // workers, 1, 1), 0.5, dtype=torch.float64)
        return sweep(halves, start, inputs, comm, **options)

    return simulate(work, workers)


def all_states(found: list[Swept]) -> np.ndarray:
    return torch.cat([state.detach().flatten() for one in found for state in one.states]).numpy()


@pytest.mark.parametrize("sweeps", [1, 2, 5, 8])
def test_a_contraction_gains_its_factor_in_each_sweep(sweeps: int) -> None:
    """Ranks 1 and 2 guess wrong by 2: after k sweeps they are wrong by 2 a^k, where nothing exact has come yet."""
    found = run(3, 12, 3.0, segments=4, most=sweeps)
    assert {(one.sweeps, one.settled) for one in found} == {(sweeps, False)}
    expected = np.where(np.arange(12) < 4 + sweeps - 1, 0.0, 2 * 0.5**sweeps)
    np.testing.assert_array_equal(all_states(found) - 1, expected)


@few
@given(
    workers=st.integers(1, 4),
    share=st.sampled_from([1, 2, 3, 4, 6]),
    divisor=st.integers(1, 6),
    sweeps=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_as_many_segments_are_exact_as_there_were_sweeps(
    workers: int, share: int, divisor: int, sweeps: int, seed: int
) -> None:
    """A triangular system with random matrices that magnify, from random guesses, against NumPy."""
    segments = max(k for k in range(1, divisor + 1) if share % k == 0)
    source = np.random.default_rng(seed)
    matrices = source.standard_normal((workers * share, 1, 3, 3))
    h = start = source.standard_normal((1, 3))
    expected = [h := np.einsum("bij,bj->bi", m, h) for m in matrices]
    guesses = source.standard_normal((workers, 1, 3))

    def work(comm: Comm) -> Swept:
        own = torch.from_numpy(matrices[comm.rank * share : (comm.rank + 1) * share])
        begin = torch.from_numpy(start if comm.rank == 0 else guesses[comm.rank])
        return sweep(lambda h, a: (a @ h[:, :, None])[:, :, 0], begin, own, comm, segments=segments, most=sweeps)

    found = simulate(work, workers)
    right = min(sweeps, segments * workers) * share // segments
    states = torch.cat([state.detach() for one in found for state in one.states]).numpy()
    np.testing.assert_allclose(states[:right], np.concatenate(expected)[:right], rtol=1e-9)
    assert found[0].sweeps <= min(sweeps, segments * workers)


def test_it_ends_when_nothing_changes_by_more_than_the_tolerance() -> None:
    """The foremost wrong inlet becomes exact in sweep k, a change by 2 a^(k-1), which is the largest."""
    found = run(4, 64, 3.0, segments=16, tolerance=0.02)
    assert {(one.sweeps, one.settled) for one in found} == {(8, True)}
    assert np.abs(all_states(found) - 1).max() <= 0.02
    right = run(4, 64, 1.0, segments=16)
    assert {(one.sweeps, one.settled) for one in right} == {(1, True)}
    assert (all_states(right) == 1).all()


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_values_and_gradients_are_those_of_autograd(workers: int, segments: int) -> None:
    found = simulate(lambda comm: chain_gradients(comm, segments), workers)
    expected = autograd(workers)
    for states, parameters, start, sweeps in found:
        torch.testing.assert_close(states, expected[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(parameters, expected[1], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(start, expected[2], rtol=1e-9, atol=1e-12)
        assert 1 <= sweeps <= segments * workers
    if segments == 1:
        assert found[0][0].equal(expected[0])  # the same operations in the same order


def autograd(workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return states, the gradient of the parameters and that of the start, one step after the other."""
    cell, inputs, targets, start = problem(workers)
    h, states = start, []
    for x in inputs:
        h = cell(x, h)
        states.append(h)
    result = torch.stack(states)
    ((result - targets) ** 2).sum().backward()
    assert start.grad is not None
    return result.detach(), torch.cat([p.grad.flatten() for p in cell.parameters()]), start.grad


def test_layers_over_workers_and_a_loss_at_the_end() -> None:
    """Blocks of other widths inside, one on rank 0 and two on rank 1; only the last rank has a loss."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 3)).double() for n in (2, 5, 7)]
    x, y = torch.randn(2, 6, 3, dtype=torch.float64)
    parameters = [p for block in blocks for p in block.parameters()]
    expected = torch.autograd.grad(((nn.Sequential(*blocks)(x) - y) ** 2).sum(), parameters)

    def work(comm: Comm) -> None:
        own, start = (blocks[:1], x) if comm.rank == 0 else (blocks[1:], torch.zeros_like(x))
        found = sweep(lambda h, block: block(h), start, own, comm)
        found.backward(((found.states[-1] - y) ** 2).sum() if comm.rank == 1 else None)

    simulate(work, 2)
    assert all(p.grad.equal(g) for p, g in zip(parameters, expected, strict=True))


def test_what_is_not_finite_ends_too() -> None:
    def work(comm: Comm) -> Swept:
        start, inputs = torch.full((1, 1), torch.nan), torch.ones(2, 1, 1)
        return sweep(halves, start, inputs, comm, segments=2, tolerance=1.0)

    found = simulate(work, 2)
    assert {(one.sweeps, one.settled) for one in found} == {(4, False)}


def test_without_gradients_there_is_no_graph() -> None:
    def work(comm: Comm) -> None:
        with torch.no_grad():
            found = sweep(halves, torch.ones(1, 1), torch.ones(2, 1, 1), comm)
        assert not found.states[0].requires_grad
        with pytest.raises(UsageError, match=r"made without gradients; call it outside of torch\.no_grad"):
            found.backward(None)

    simulate(work, 2)


ONE = torch.ones(1, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segments": 3}, "segments must divide the 4 steps of this worker, found 3"),
        ({"segments": 0}, "segments must divide the 4 steps"),
        ({"segments": 5}, "segments must divide the 4 steps"),
        ({"tolerance": -1.0}, "tolerance must be at least 0 and finite, found -1"),
        ({"tolerance": float("nan")}, "tolerance must be at least 0 and finite, found nan"),
        ({"most": 0}, "most must be at least 1, found 0"),
        ({"start": torch.ones(1, 1, dtype=torch.int64)}, "start must be floating point"),
        ({"start": torch.tensor(1.0)}, "start must be floating point"),
        ({"start": torch.ones(0, 1)}, r"start must be floating point \[B, ...], found torch.float32 \(0, 1\)"),
        ({"inputs": torch.ones(4)}, r"inputs must be \[L, B, ...], found shape \(4,\)"),
        ({"inputs": [ONE] * 4, "segments": 2}, "several segments need inputs that are one tensor"),
        ({"step": lambda h, x: h[:, :0]}, r"a state like the one it takes, torch.float32 \(1, 1\); found"),
        ({"step": lambda h, x: h.double()}, r"found torch.float64 \(1, 1\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"step": halves, "start": ONE, "inputs": torch.ones(4, 1, 1), **change}
    with pytest.raises(UsageError, match=message):
        simulate(lambda comm: sweep(comm=comm, **arguments), 2)


@pytest.mark.parametrize("name", ["segments", "tolerance", "most"])
def test_ranks_that_disagree(name: str) -> None:
    values: dict[str, Any] = {"segments": (2, 4), "tolerance": (0.0, 0.5), "most": (2, 1)}

    def work(comm: Comm) -> None:
        sweep(halves, ONE, torch.ones(4, 1, 1), comm, **{name: values[name][comm.rank]})

    with pytest.raises(Disagreement, match=f"sweep: {name}: expected .* as on rank 0, found .* on rank 1"):
        simulate(work, 2)


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "examples" / "parallel_sweeps.py"
    spec = importlib.util.spec_from_file_location("example_parallel_sweeps", path)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "STEPS", 3)
    found = simulate(example.train, example.WORKERS)
    assert found[1:] == found[:-1]
    assert [round(loss, 1) for loss, *_ in found[0]] == [0.7] * 3
    assert all(sweeps <= 16 for _, *both in found[0] for sweeps in both)


def test_an_error_in_a_step_ends_all_workers() -> None:
    def work(comm: Comm) -> None:
        def step(h: Tensor, x: Tensor) -> Tensor:
            if comm.rank == 1:
                raise RuntimeError("broken")
            return halves(h, x)

        sweep(step, ONE, torch.ones(4, 1, 1), comm)

    with pytest.raises(RuntimeError, match="broken"):
        simulate(work, 3)
