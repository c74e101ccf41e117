"""Faults do what they say, to the last K ranks only; checked against NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from runs import regression, train, weights
from swarmstep import spec_help
from swarmstep.data.sampler import Sampler
from swarmstep.data.sharding import hold_out, shard
from swarmstep.errors import UsageError
from swarmstep.seeding import generator, mix
from swarmstep.train.faults import Fault, parse

STEPS, EVERY, BATCH, LR, SEED = 6, 2, 5, 0.02, 4


def bad(kind: str, number: float = 0.0, count: int = 1) -> Fault:
    return Fault(kind, count, number, 3, SEED)


@given(workers=st.integers(1, 20), data=st.data())
def test_the_last_ranks_are_struck(workers: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, workers))
    for spec in (f"sign:{count}", f"noise:{count}:0.5", f"nan:{count}:3"):
        fault = parse(spec, workers, 0)
        assert fault
        assert [fault.strikes(rank) for rank in range(workers)] == [False] * (workers - count) + [True] * count
        brought = [torch.ones(1) for _ in range(workers)]
        for rank, x in enumerate(brought):
            fault.before_round(x, torch.zeros(1), rank, 1)
        hurt = [float(x) != 1.0 for x in brought]
        assert hurt == [fault.strikes(rank) and not spec.startswith("nan") for rank in range(workers)]


def test_no_fault() -> None:
    assert parse(None, 3, 0) is None


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "sign",
        "sign:",
        "sign:x",
        "sign:1:2",
        "noise:1",
        "noise:1:x",
        "scale:1",
        "nan:1",
        "nan:1:2.5",
        "nan:1:2:3",
        "bang:1",
    ],
)
def test_other_forms_are_refused_and_the_valid_ones_listed(spec: str) -> None:
    with pytest.raises(UsageError, match=f"unknown fault {spec!r}; expected {spec_help.FAULTS}"):
        parse(spec, 3, 0)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("sign:0", "K must be 1 to 3, the number of workers, found 0"),
        ("noise:4:1", "K must be 1 to 3, the number of workers, found 4"),
        ("noise:1:0", "expected a number above 0 after K, found 0"),
        ("noise:1:-1", "above 0 after K, found -1"),
        ("noise:1:nan", "above 0 after K, found nan"),
        ("noise:1:inf", "above 0 after K, found inf"),
        ("nan:1:0", "above 0 after K, found 0"),
    ],
)
def test_numbers_out_of_range_are_refused(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse(spec, 3, 0)


def test_a_step_beyond_the_end_is_refused() -> None:
    with pytest.raises(UsageError, match=r"fault 'nan:1:15': STEP must be 1 to 14, the steps of the run"):
        train({"fault": "nan:1:15"}, None)


def test_noise_is_gaussian_of_the_given_deviation_and_its_own_each_time() -> None:
    drawn: list[np.ndarray[Any, Any]] = []
    for step in (4, 8, 4):
        x = torch.full((40_000,), 3.0)
        bad("noise", 0.25).before_round(x, torch.zeros(40_000), 2, step)
        drawn.append(x.numpy() - 3.0)
    first, second, again = drawn
    assert abs(first.mean()) < 4 * 0.25 / 200
    assert abs(first.std() / 0.25 - 1) < 0.02
    assert abs(np.mean(np.abs(first) < 0.25) - 0.6827) < 0.01
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert (first == again).all()


def test_nan_strikes_at_its_step_alone() -> None:
    for rank, step, struck in [(2, 5, True), (2, 4, False), (2, 6, False), (1, 5, False)]:
        model = nn.Linear(2, 2)
        bad("nan", 5).after_step(model, rank, step)
        assert bool(model.weight.isnan().all()) == struck
        assert bool(model.bias.isnan().all()) == struck


def oracle(strategy: str, kind: str, sigma: float, count: int) -> Any:
    """Train linear least squares with SGD on two workers in NumPy; return weight and bias of the result."""
    workload = regression()
    held = hold_out(len(workload.train), SEED)
    shards = shard(workload.train.targets[held.train], "iid", 2, SEED, None)
    samplers = [Sampler(part, BATCH, SEED, rank) for rank, part in enumerate(shards)]
    torch.manual_seed(mix(SEED, "model"))
    start = nn.Linear(6, 1)
    initial = np.append(start.weight.detach().numpy(), start.bias.detach().numpy()).astype(np.float64)
    xs, last = [initial.copy(), initial.copy()], [initial.copy(), initial.copy()]

    def hurt(rank: int, x: Any, before: Any, step: int) -> Any:
        if rank < 2 - count:
            return x
        if kind == "sign":
            return 2 * before - x
        return x + sigma * torch.randn(7, generator=generator(SEED, step, rank, "fault")).numpy()

    for step in range(1, STEPS + 1):
        gradients: list[Any] = []
        for rank, x in enumerate(xs):
            batch = samplers[rank].batch(step)
            a = workload.train.inputs[held.train[batch.indices]].numpy()
            error = a @ x[:6] + x[6] - batch.targets.numpy()
            gradients.append(2 / BATCH * np.append(error @ a, error.sum()))
        if strategy == "synchronous":
            gradients = [np.mean([hurt(r, g, 0 * g, step) for r, g in enumerate(gradients)], axis=0)] * 2
        xs = [x - LR * g for x, g in zip(xs, gradients, strict=True)]
        if strategy == "local-sgd" and step % EVERY == 0:
            mean = np.mean([hurt(r, x, last[r], step) for r, x in enumerate(xs)], axis=0)
            xs, last = [mean, mean], [mean, mean]
    return np.mean(xs, axis=0)


@pytest.mark.parametrize("strategy", ["local-sgd", "synchronous"])
@pytest.mark.parametrize(("kind", "sigma", "count"), [("sign", 0, 1), ("noise", 0.5, 1), ("noise", 0.1, 2)])
def test_training_under_faults(strategy: str, kind: str, sigma: float, count: int, tmp_path: Path) -> None:
    spec = f"{kind}:{count}" + (f":{sigma}" if sigma else "")
    fields = {"strategy": strategy, "fault": spec, "workers": 2, "seed": SEED}
    train(fields, tmp_path / "run", name="regression")
    saved = load_file(tmp_path / "run" / "model.safetensors")
    found = np.append(saved["weight"].numpy(), saved["bias"].numpy())
    np.testing.assert_allclose(found, oracle(strategy, kind, sigma, count), rtol=2e-5, atol=2e-6)


def test_faults_without_rounds_strike_nothing(tmp_path: Path) -> None:
    losses = [
        train({"strategy": "independent", "fault": fault}, None)["test_loss"]
        for fault in (None, "sign:2", "noise:1:5")
    ]
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("strategy", ["local-sgd", "swarm"])
def test_a_run_with_a_fault_goes_on_as_if_it_had_not_stopped(strategy: str, tmp_path: Path) -> None:
    fields = {"strategy": strategy, "fault": "sign:1"}
    train(fields, tmp_path / "whole")
    assert "stopped at step 6" in train(fields, tmp_path / "parts", stop_at=6)["interrupted"]
    train(fields, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
