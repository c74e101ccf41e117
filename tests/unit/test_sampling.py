"""Sampling by sweeps: the text of writing one token after the other, in fewer calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from examples import few
from swarmstep.cli import main
from swarmstep.errors import CheckpointError, UsageError
from swarmstep.parallel import Sampled, sample
from swarmstep.seeding import generator
from swarmstep.train.model_file import load_model, save_model
from swarmstep.train.sampling import SampleSettings, write
from swarmstep.workloads.gpt import CONTEXT, GPT, with_cache
from swarmstep.workloads.text import gpt_small

V = 7
TABLE = torch.randn(V, V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def markov(text: Tensor, known: int) -> Tensor:
    """Logits that depend on the last two tokens."""
    before = torch.cat([text[:, :1], text[:, :-1]], dim=1)
    return 2 * TABLE[before, text][:, known:]


def by_hand(prompt: list[int], tokens: int, seed: int, temperature: float) -> list[int]:
    """The same in NumPy, one token after the other, from the equation."""
    table, text = TABLE.numpy(), [prompt[0], *prompt]
    for place in range(len(prompt), len(prompt) + tokens):
        uniform = torch.rand((1, V), generator=generator("sample", seed, place), dtype=torch.float64).numpy()[0]
        logits = 2 * table[text[-2], text[-1]]
        noisy = logits / temperature - np.log(-np.log(uniform)) if temperature else logits
        text.append(int(noisy.argmax()))
    return text[1:]


@few
@given(
    prompt=st.lists(st.integers(0, V - 1), min_size=1, max_size=4),
    tokens=st.integers(1, 40),
    window=st.integers(1, 50),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
def test_the_text_is_that_of_one_token_after_the_other(
    prompt: list[int], tokens: int, window: int, seed: int, temperature: float
) -> None:
    found = sample(markov, torch.tensor([prompt]), tokens, window=window, seed=seed, temperature=temperature)
    assert found.text[0].tolist() == by_hand(prompt, tokens, seed, temperature)
    assert -(-tokens // window) <= found.sweeps <= tokens
    assert window > 1 or found.sweeps == tokens


def test_the_noise_samples_from_the_softmax() -> None:
    """Of 20,000 rows each token comes as often as the softmax says, within 4 standard deviations."""
    count, probabilities = 20_000, torch.softmax(TABLE[1, 2] * 2 / 0.7, dim=0)
    found = sample(markov, torch.tensor([[1, 2]]).expand(count, 2).contiguous(), 1, temperature=0.7)
    shares = found.text[:, 2].bincount(minlength=V) / count
    assert ((shares - probabilities).abs() <= 4 * (probabilities * (1 - probabilities) / count).sqrt()).all()


def test_several_rows_are_as_each_alone_without_noise() -> None:
    prompts = torch.tensor([[0, 1], [5, 3], [2, 2]])
    together = sample(markov, prompts, 30, temperature=0.0)
    alone = [sample(markov, prompt[None], 30, temperature=0.0).text for prompt in prompts]
    assert together.text.equal(torch.cat(alone))


def test_a_text_that_repeats_itself_takes_a_call_for_each_window() -> None:
    """The first guess is right everywhere."""

    def same(text: Tensor, known: int) -> Tensor:
        return torch.nn.functional.one_hot(text[:, known:], V).double()

    found = sample(same, torch.tensor([[4]]), 32, window=8, temperature=0.0)
    assert found.text.tolist() == [[4] * 33]
    assert found.sweeps == 4


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(1)
    model = gpt_small()
    assert isinstance(model, GPT)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # so that the context counts
    return model.double().eval()


def test_a_cache_changes_nothing_but_the_work(model: GPT) -> None:
    text = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0))
    predict = with_cache(model)
    with torch.no_grad():
        whole = model(text)
        parts = [predict(text[:, :end], known) for known, end in ((0, 10), (10, 11), (11, 40), (25, 40))]
    torch.testing.assert_close(torch.cat(parts[:3], dim=1), whole, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(parts[3], whole[:, 25:], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("window", [5, 16, 200])
@pytest.mark.parametrize("cached", [True, False])
def test_windows_and_caches_give_the_same_text_beyond_the_context(model: GPT, cached: bool, window: int) -> None:
    def written(cached: bool, window: int) -> Sampled:
        predict = with_cache(model) if cached else lambda text, known: model(text)
        return sample(predict, torch.tensor([[100, 101]]), 150, window=window, context=CONTEXT, seed=3)

    one, found = written(True, 1), written(cached, window)
    assert one.text.equal(found.text)
    assert one.sweeps == 150
    assert found.sweeps < 150


@pytest.mark.parametrize("window", [1, 6, 50])
def test_each_place_sees_at_least_half_of_the_context(window: int) -> None:
    seen: list[tuple[int, int]] = []

    def predict(text: Tensor, known: int) -> Tensor:
        seen.append((text.shape[1], known))
        return markov(text, known)

    sample(predict, torch.tensor([[1, 2, 3]]), 60, window=window, context=10)
    assert max(length for length, _ in seen) == 10
    assert all(known < length for length, known in seen)
    lengths = [length for length, _ in seen]
    assert min(lengths[lengths.index(10) :]) >= 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": 0}, "tokens must be at least 1, found 0"),
        ({"window": 0}, "window must be at least 1, found 0"),
        ({"context": 1}, "context must be at least 2, found 1"),
        ({"temperature": -0.1}, "temperature must be at least 0 and finite, found -0.1"),
        ({"prompt": torch.zeros(1, 0, dtype=torch.int64)}, r"prompt must be int64 \[B, n], found"),
        ({"prompt": torch.zeros(3)}, r"prompt must be int64 \[B, n], found torch.float32 \(3,\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"prompt": torch.tensor([[1]]), "tokens": 3, **change}
    with pytest.raises(UsageError, match=message):
        sample(markov, **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the text workload on a short text."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "own.txt").write_bytes(b"the cat sat on the mat. " * 80)
    options = ["--model", "gpt-small", "--workers", "1", "--steps", "20", "--data", str(folder / "own.txt")]
    assert main(["train", "text", "--strategy", "independent", *options, "--out", str(folder / "run")]) == 0
    return folder / "run"


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", str(run), "--tokens", "100", "--prompt", "the c", "--seed", "4"]
    assert main([*words, "--sequential", "--json"]) == 0
    alone = json.loads(capsys.readouterr().out)
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert alone["sweeps"] == 100 > found["sweeps"]
    assert alone["text"] == found["text"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == f"the c{found['text']}\n"
    assert f"100 bytes in {found['sweeps']} sweeps" in shown.err
    written = write(run, SampleSettings(tokens=100, prompt="the c", seed=4))
    assert written.text.decode(errors="replace") == found["text"]


def test_what_cannot_be_sampled_from(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no run"):
        write(tmp_path, SampleSettings())
    with pytest.raises(UsageError, match="prompt must be"):
        write(run, SampleSettings(prompt=""))
    words = ["train", "digits", "--workers", "1", "--strategy", "independent", "--steps", "1"]
    assert main([*words, "--out", str(tmp_path / "digits")]) == 0
    with pytest.raises(UsageError, match="expected a run of the workload text, found digits"):
        write(tmp_path / "digits", SampleSettings())
    model = gpt_small()
    with pytest.raises(CheckpointError, match=r"cannot be read: .*; a run writes it when it is done"):
        load_model(model, tmp_path / "model.safetensors")
    save_model(torch.nn.Linear(2, 2), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'bias' has shape \(2,\), expected None; it is of another model"):
        load_model(model, tmp_path / "model.safetensors")
