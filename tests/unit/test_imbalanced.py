"""The workload of rare positives: its data, a table of one's own, its objectives and its metric."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from runs import same_run, train
from swarmstep import simulate
from swarmstep.errors import DataError, UsageError
from swarmstep.objectives import AUCMinMax, auc
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.local_step import drawn_shares
from swarmstep.workloads import Workload, digits, load
from swarmstep.workloads.table import read_table


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_digits_have_the_rate_that_was_asked_for(rate: float) -> None:
    workload, whole = load(f"imbalanced:digits:{rate}"), digits.load()
    positives = int(workload.train.targets.sum())
    assert positives / len(workload.train) == pytest.approx(rate, abs=0.5 / len(workload.train) / (1 - rate))
    assert len(workload.train) - positives == int((whole.train.targets < 5).sum())
    assert workload.test.targets.equal((whole.test.targets >= 5).long())
    assert workload.test.inputs.equal(whole.test.inputs)
    assert load(f"imbalanced:digits:{rate}").train.inputs.equal(workload.train.inputs)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("imbalanced:digits:0.9", "at most 0.5"),
        ("imbalanced:digits:0", "found 0"),
        ("imbalanced:digits:rare", "expected a rate of positives, 0.02 say, found 'rare'"),
        ("imbalanced:letters", "unknown source 'letters'; expected one of digits, mnist, cifar10, or a table"),
        ("digits:0.1", "unknown workload 'digits:0.1'"),
    ],
)
def test_variants_that_do_not_exist(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(name)


def written(folder: Path, text: str) -> Path:
    file = folder / "table.csv"
    file.write_text(text)
    return file


def rows(count: int) -> str:
    source = np.random.default_rng(0)
    lines = [
        f"{source.normal():.4f},{int(i % 5 == 0)},7,{100 * source.normal() + 3 * (i % 5 == 0):.2f}"
        for i in range(count)
    ]
    return "\n".join(["age,fraud,constant,amount", *lines])


def test_a_table_is_split_by_label_and_standardized(tmp_path: Path) -> None:
    table = read_table(written(tmp_path, rows(100)), "fraud")
    assert table.columns == ("age", "constant", "amount")
    assert [int(part.targets.sum()) for part in table[:2]] == [16, 4]
    assert [len(part) for part in table[:2]] == [80, 20]
    inputs = table.train.inputs
    assert inputs.mean(0).abs().max() < 1e-6
    assert torch.allclose(inputs.std(0, unbiased=False), torch.tensor([1.0, 0.0, 1.0]), atol=1e-5)
    raw = np.loadtxt(tmp_path / "table.csv", delimiter=",", skiprows=1)[:, [0, 2, 3]]
    both = torch.cat([table.train.inputs, table.test.inputs])[:, [0, 2]].double().numpy()
    order, expected = both[:, 0].argsort(), raw[raw[:, 0].argsort()][:, [0, 2]]
    slope = np.polyfit(both[order][:, 1], expected[:, 1], 1)  # the same numbers, shifted and scaled
    np.testing.assert_allclose(np.polyval(slope, both[order][:, 1]), expected[:, 1], atol=1e-2)


def test_a_table_is_a_workload(tmp_path: Path) -> None:
    workload = load("imbalanced:fraud", written(tmp_path, rows(100)))
    assert {name: build()(workload.train.inputs[:2]).shape for name, build in workload.models.items()} == {
        "mlp": (2, 1),
        "linear": (2, 1),
    }
    assert workload.metrics == {"auc": auc}


@pytest.mark.parametrize(
    ("text", "label", "said"),
    [
        ("", "", "found an empty file"),
        ("a,y\n1,0\n", "z", "expected one column 'z' and others, found a, y"),
        ("y\n1\n", "", "expected one column 'y' and others"),
        ("a,y\n1,0\n2\n", "", "row 3: expected 2 cells, as in the header, found 1"),
        ("a,y\n,0\n", "", "row 2, column 'a': expected a finite number, found a missing value"),
        ("a,y\nnan,0\n", "", "row 2, column 'a': expected a finite number, found 'nan'"),
        ("a,y\nred,0\n", "", "row 2, column 'a': expected a finite number, found 'red'"),
        ("a,y\n1,2\n2,0\n", "", "column 'y': expected labels 0 and 1, found 2"),
        ("a,y\n" + "1,0\n" * 9, "", "at least 5 rows with label 1, found 0"),
    ],
)
def test_what_is_wrong_with_a_table_is_named(tmp_path: Path, text: str, label: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_table(written(tmp_path, text), label)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a CSV table"):
        load("imbalanced", tmp_path / "none.csv")


def config(workload: Workload, **fields: Any) -> Config:
    return resolve(Config(workload="imbalanced", **fields), workload)


def test_the_objective_knows_the_share_of_positives_as_they_are_drawn() -> None:
    workload = load("imbalanced:digits:0.1")
    assert drawn_shares(config(workload), workload).tolist() == [0.5, 0.5]
    natural = drawn_shares(config(workload, sampling="natural"), workload)
    assert float(natural[1]) == pytest.approx(0.1, abs=0.02)
    assert float(natural.sum()) == pytest.approx(1)
    criterion = workload.objectives["auc"](natural)
    assert isinstance(criterion, AUCMinMax)
    assert criterion.positive_rate == float(natural[1])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"objective": "f1"}, "unknown objective 'f1' of imbalanced; expected one of auc, cross-entropy"),
        ({"elastic": "local", "backend": "gloo"}, "sampling balanced: with --elastic workers draw from all"),
        ({"balance": "batch"}, "sampling balanced: with --balance workers draw from all"),
        ({"shards": "dealt"}, "sampling balanced: with --shards dealt workers draw from all"),
        ({"strategy": "asgrad"}, ""),
    ],
)
def test_what_does_not_go_with_it_is_named(fields: dict[str, Any], said: str) -> None:
    workload = load("imbalanced")
    if said:
        with pytest.raises(UsageError, match=said):
            config(workload, **fields)
    else:
        assert config(workload, **fields).objective == "auc"


def test_other_workloads_have_one_objective() -> None:
    with pytest.raises(UsageError, match="unknown objective 'auc' of digits; expected none, as it has one loss"):
        resolve(Config(workload="digits", objective="auc"), digits.load())


def test_a_shard_without_positives_is_refused_on_all_ranks() -> None:
    with pytest.raises(UsageError, match="examples of rank 0 none is of class 1"):
        train({"shards": "classes:1", "workers": 2}, None, "rare")


@pytest.mark.parametrize("objective", ["auc", "cross-entropy"])
def test_a_run_tells_the_exact_auc_and_leaves_the_model_alone_in_the_file(tmp_path: Path, objective: str) -> None:
    summary = train({"strategy": "diloco", "objective": objective}, tmp_path / "run", "rare")
    workload = load("imbalanced")
    model = workload.models["mlp"]()
    model.load_state_dict(load_file(tmp_path / "run" / "model.safetensors"))
    scores = model(workload.prepare(workload.test.inputs)).detach()[:, 0]
    high, low = scores[workload.test.targets == 1], scores[workload.test.targets == 0]
    pairs = (high[:, None] > low).double().mean() + 0.5 * (high[:, None] == low).double().mean()
    assert summary["test_auc"] == pytest.approx(float(pairs), abs=1e-6)
    assert summary["metric"] == "auc"
    assert math.isnan(summary["test_accuracy"])
    assert summary["objective"] == objective


@pytest.mark.parametrize("strategy", ["swarm", "diloco", "synchronous"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, strategy: str) -> None:
    train({"strategy": strategy}, tmp_path / "whole", "rare")
    train({"strategy": strategy}, tmp_path / "parts", "rare", stop_at=6)
    train({"strategy": strategy}, tmp_path / "parts", "rare", resume=True)
    same_run(tmp_path / "whole", tmp_path / "parts")


def test_balanced_shards_cannot_be_taken_over(tmp_path: Path) -> None:
    train({}, tmp_path / "run", "rare", stop_at=6)
    with pytest.raises(UsageError, match="with --sampling balanced nobody can take over a worker's data"):
        train({"workers": 2}, tmp_path / "run", "rare", resume=True)


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "examples" / "rare_positives.py"
    spec = importlib.util.spec_from_file_location("example_rare_positives", path)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "STEPS", 66)
    found = simulate(lambda comm: example.train(comm, AUCMinMax()), example.WORKERS)
    assert len({*found}) == 1  # one model
    assert found[0] > 0.7


def test_an_accuracy_that_nobody_measures_is_not_waited_for() -> None:
    workload = load("imbalanced", None)
    with pytest.raises(UsageError, match="has no accuracy to reach"):
        resolve(Config("imbalanced", until_accuracy=0.5), workload)
