"""The text workload: its corpus, its windows, its model, and a text with a known entropy."""

from __future__ import annotations

import hashlib
import math
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor

from markov import Exact, Markov
from swarmstep.errors import DataError
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.local_step import learning_rate
from swarmstep.train.optimizer import build_optimizer
from swarmstep.workloads import Workload, load, text
from swarmstep.workloads.gpt import GPT
from swarmstep.workloads.text import LEAST, MODULES, Corpus


def test_the_list_of_modules_is_pinned() -> None:
    assert list(MODULES) == sorted({*MODULES})
    assert len(MODULES) == 136
    digest = hashlib.sha256("\n".join(MODULES).encode()).hexdigest()
    assert digest == "6efbf4f201933881d783c9341a9350a9f317e267c1de01947bacb8d22510d550"


def test_the_corpus_is_the_library_in_the_order_of_the_list() -> None:
    corpus = text.standard_library()
    folder = Path(sysconfig.get_path("stdlib"))
    sources = {name: (folder / f"{name}.py").read_bytes() for name in MODULES}
    assert corpus.sha256 == hashlib.sha256(b"\n".join(sources.values())).hexdigest()
    tested = ["cProfile", "enum", "ipaddress", "platform", "shelve", "threading"]
    assert corpus.test == b"\n".join(sources[name] for name in tested)
    assert corpus.train == b"\n".join(source for name, source in sources.items() if name not in tested)


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(name)
    assert text.standard_library(tmp_path).test.startswith(b"cProfile\nenum\n")
    (tmp_path / "enum.py").unlink()
    with pytest.raises(
        DataError, match=r"enum\.py: cannot be read \(No such file .*\); install the sources .* --data"
    ):
        text.standard_library(tmp_path)


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    content = bytes(i * i % 251 for i in range(3000))
    (tmp_path / "own.txt").write_bytes(content)
    workload = load("text", tmp_path / "own.txt")
    assert workload.corpus == hashlib.sha256(content).hexdigest()
    assert (len(workload.train), len(workload.test)) == (2849 // 64, 149 // 64)
    assert bytes(workload.test.inputs.flatten().tolist()) == content[2850 : 2850 + 128]
    assert bytes(workload.test.targets.flatten().tolist()) == content[2851 : 2851 + 128]
    assert load("text", tmp_path).corpus == text.standard_library().sha256  # a folder is not a text


def test_a_text_that_is_missing_or_too_short(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(bytes(LEAST - 1))
    with pytest.raises(
        DataError, match="short: expected a text of at least 1300 bytes, found 1299; give a longer"
    ):
        load("text", tmp_path / "short")
    (tmp_path / "just").write_bytes(bytes(LEAST))
    assert len(load("text", tmp_path / "just").test) == 1
    with pytest.raises(DataError, match=r"none: cannot be read .* or leave --data out"):
        load("text", tmp_path / "none")


@pytest.mark.parametrize("length", [65, 66, 128, 129, 1000])
def test_windows_are_what_is_there_and_what_comes_next(length: int) -> None:
    content = bytes(i % 251 for i in range(length))
    examples = text.windows(content)
    assert len(examples) == (length - 1) // 64
    assert examples.inputs.dtype == torch.uint8
    assert examples.targets.dtype == torch.int64
    for i in range(len(examples)):
        assert bytes(examples.inputs[i].tolist()) == content[64 * i : 64 * i + 64]
        assert bytes(examples.targets[i].tolist()) == content[64 * i + 1 : 64 * i + 65]


def test_the_loss_is_per_byte_and_accuracy_counts_bytes() -> None:
    outputs, targets = torch.zeros(3, 64, 256), torch.zeros(3, 64, dtype=torch.int64)
    assert float(text.next_byte_loss(outputs, targets)) == pytest.approx(math.log(256))
    assert text.bits(math.log(256)) == pytest.approx(8)
    assert float(text.right_bytes(outputs, targets)) == 3
    targets[0, :16] = 1
    assert float(text.right_bytes(outputs, targets)) == 2.75


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    return GPT(width=128, layers=4)


def test_the_weights_are_those_of_gpt2(model: GPT) -> None:
    for name, parameter in model.state_dict().items():
        if parameter.ndim == 2:
            expected = 0.02 / math.sqrt(8) if name.endswith(("out.weight", "down.weight")) else 0.02
            assert float(parameter.std()) == pytest.approx(expected, rel=0.05), name
            assert abs(float(parameter.mean())) < 4 * expected / math.sqrt(parameter.numel())
    assert model.head.weight is model.embedding.weight
    assert [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1] is model.head
    assert all(m.bias is None for m in model.modules() if isinstance(m, torch.nn.Linear))


@torch.no_grad()
def test_no_byte_sees_what_comes_after_it_and_each_sees_all_before(model: GPT) -> None:
    one = torch.randint(256, (1, 64), generator=torch.Generator().manual_seed(1))
    before = model(one)
    for place in (0, 20, 63):
        other = one.clone()
        other[0, place] += 1 - 2 * (other[0, place] // 128)
        changed = (model(other) - before).abs().amax(2)[0]
        assert not changed[:place].any()
        assert (changed[place:] > 0).all()
    assert model(one[:, :30]).allclose(before[:, :30], atol=1e-5)


@torch.no_grad()
def test_attention_is_the_formula(model: GPT) -> None:
    """One block by hand: softmax(q k / sqrt(32)) v over what is not in the future, head by head."""
    block = model.blocks[0]
    x = torch.randn(2, 10, 128, generator=torch.Generator().manual_seed(2))
    q, k, v = block.attend(block.norm_1(x)).chunk(3, 2)
    heads: list[Tensor] = []
    for part in (slice(i, i + 32) for i in range(0, 128, 32)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(32)
        scores += torch.full((10, 10), -torch.inf).triu(1)
        heads.append(scores.softmax(2) @ v[..., part])
    y = x + torch.cat(heads, 2) @ block.out.weight.T
    hidden = block.norm_2(y) @ block.up.weight.T
    z = y + (0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))) @ block.down.weight.T
    torch.testing.assert_close(block(x), z, rtol=1e-4, atol=1e-5)


# A text with a known entropy


def markov(chain: Markov) -> Workload:
    return text.workload_of(Corpus(chain.text(200_000, 1), chain.text(60_000, 2), "0" * 64))


def after_the_first(workload: Workload, outputs: Tensor, targets: Tensor) -> float:
    """Return the loss without each window's first byte, for which a model lacks one of the two before it."""
    return float(workload.loss(outputs[:, 1:], targets[:, 1:]))


def test_the_floor_is_that_of_chains_known_by_hand() -> None:
    assert Markov(torch.full((4, 4, 4), 0.25, dtype=torch.float64)).floor() == pytest.approx(math.log(4))
    certain = torch.zeros(3, 3, 3, dtype=torch.float64)
    certain[..., 1] = 1
    assert Markov(certain).floor() == 0
    half = torch.tensor([[[0.5, 0.5], [0.9, 0.1]], [[0.5, 0.5], [0.9, 0.1]]], dtype=torch.float64)  # order 1
    often = 0.9 / 1.4  # of a 0: p = p / 2 + 0.9 (1 - p)
    entropy = often * math.log(2) - (1 - often) * (0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert Markov(half).floor() == pytest.approx(entropy)


def test_the_loss_of_the_exact_model_is_the_floor() -> None:
    chain = Markov.drawn(16)
    workload = markov(chain)
    outputs = Exact(chain)(workload.prepare(workload.test.inputs))
    loss = after_the_first(workload, outputs, workload.test.targets)
    assert loss == pytest.approx(chain.floor(), abs=4 / math.sqrt(60_000))  # a byte's loss deviates by about 1 nat


@pytest.mark.slow
def test_a_small_model_goes_down_to_the_floor() -> None:
    chain, steps = Markov.drawn(4), 300
    workload = markov(chain)
    wish = {
        "optimizer": "muon",
        "lr": 0.02,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "warmup": 30,
        "steps": steps,
    }
    config = resolve(Config("text", **wish), workload)
    torch.manual_seed(0)
    model = GPT(width=32, layers=2)
    optimizer = build_optimizer(model, config)
    for step in range(1, steps + 1):
        batch = workload.train.take(torch.arange(step * 16, (step + 1) * 16) % len(workload.train))
        optimizer.zero_grad()
        workload.loss(model(workload.prepare(batch.inputs)), batch.targets).backward()
        optimizer.step(learning_rate(config, step))
    with torch.no_grad():
        outputs = model(workload.prepare(workload.test.inputs))
    over = after_the_first(workload, outputs, workload.test.targets) - chain.floor()
    assert -4 / math.sqrt(60_000) < over < 0.05  # it begins at 4.8; without the byte before the last it is 0.3
