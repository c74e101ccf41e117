"""The spiking workload: when a leaky neuron fires, whose its state is, and that every method trains it."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from examples import few
from swarmstep import simulate
from swarmstep.errors import UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.strategies import STRATEGIES
from swarmstep.train.build import resolve
from swarmstep.train.config import ASYNCHRONOUS, Config
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.workloads import load, spiking


def test_without_snntorch_one_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "snntorch", None)
    with pytest.raises(
        UsageError, match=r'^the workload spiking needs snntorch, which .*: pip install "swarmstep\[spiking]"$'
    ):
        load("spiking")


pytest.importorskip("snntorch")


def fired(current: float, steps: int) -> list[int]:
    """Return the spikes of a neuron with a constant current."""
    return spiking.fire(spiking.neurons(), torch.full((steps, 1, 1), current))[:, 0, 0].int().tolist()


@few
@given(st.floats(0.01, 3.0))
def test_a_leaky_neuron_with_a_constant_current(current: float) -> None:
    """U_t = I (1 - b^t) / (1 - b) until it fires: first at the least t where that is above 1, or never."""
    beta, spikes = spiking.BETA, fired(current, 100)
    left = 1 - (1 - beta) / current  # fires once b^t is below it
    first = math.ceil(math.log(left) / math.log(beta)) if left > 0 else None
    if first is None or first > 100:
        assert sum(spikes) == 0
    elif abs(current * (1 - beta**first) / (1 - beta) - 1) > 1e-4:  # not where rounding decides
        assert spikes.index(1) + 1 == first


def test_the_whole_train_of_spikes_by_its_equation() -> None:
    """A spike takes the threshold, 1, from the potential of the next step."""
    currents = np.random.default_rng(0).uniform(0, 1, (25, 4, 3)).astype(np.float32)
    potential, spikes = np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32)
    expected = []
    for current in currents:
        potential = np.float32(spiking.BETA) * potential + current - spikes
        spikes = (potential > 1).astype(np.float32)
        expected.append(spikes)
    found = spiking.fire(spiking.neurons(), torch.from_numpy(currents))
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))


def test_outputs_loss_and_rates() -> None:
    torch.manual_seed(0)
    workload, model = load("spiking"), spiking.Spiking()
    batch = workload.train.take(torch.arange(8))
    outputs = model(workload.prepare(batch.inputs)).detach()
    assert outputs.shape == (8, 25, 138)
    assert set(outputs.unique().tolist()) == {0.0, 1.0}
    output = outputs[:, :, 128:]
    functional = pytest.importorskip("snntorch.functional")
    expected = functional.ce_count_loss()(output.transpose(0, 1), batch.targets)
    torch.testing.assert_close(workload.loss(outputs, batch.targets), expected)
    hidden, last = (average(outputs) for average in workload.averages.values())
    assert float(hidden) == pytest.approx(float(outputs[:, :, :128].sum()) / (8 * 25 * 128))
    assert float(last) == pytest.approx(float(output.sum()) / (8 * 25 * 10))


def test_a_state_stays_within_its_call() -> None:
    """Not in the vector, not in a checkpoint, not in the next batch; the model can be copied at any time."""
    torch.manual_seed(0)
    model = spiking.Spiking()
    x, other = torch.rand(2, 4, 1, 8, 8)
    before = model(x)
    model(other).sum().backward()
    assert model(x).equal(before)
    assert model(x[:2]).equal(before[:2])
    assert copy.deepcopy(model)(x).equal(before)
    layers = [f"to_{layer}.{name}" for layer in ("hidden", "output") for name in ("weight", "bias")]
    assert [*Flat(model).layout.names] == [*model.state_dict()] == layers


def trained(strategy: str, steps: int = 4) -> dict[str, float]:
    workload = load("spiking")
    settings = {"local": "false"} if strategy == "osp" else {}  # as Adam needs it
    config = Config("spiking", strategy, settings, every=2, workers=2, steps=steps, batch=8, eval_every=steps)
    if strategy == "layup":  # which steps by plain SGD
        config = dataclasses.replace(config, optimizer="sgd", lr=0.1)
    return simulated(resolve(config, workload), workload, Job(quiet=True, keep=False))


def test_the_rates_are_in_the_summary() -> None:
    summary = trained("local-sgd")
    for name in ("test_hidden_rate", "validation_hidden_rate", "test_output_rate", "validation_output_rate"):
        assert 0 < summary[name] < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [*STRATEGIES, *ASYNCHRONOUS])
def test_every_method_trains_it(strategy: str) -> None:
    summary = trained(strategy)
    assert math.isfinite(summary["test_loss"])
    assert 0 < summary["test_hidden_rate"] < 0.5


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "examples" / "spiking.py"
    spec = importlib.util.spec_from_file_location("example_spiking", path)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "STEPS", 8)
    found = simulate(example.train, example.WORKERS)
    assert len({*found}) == 1  # after the last round all have the same
    accuracy, rate = found[0]
    assert 0.05 < accuracy < 1
    assert 0 < rate < 0.5
