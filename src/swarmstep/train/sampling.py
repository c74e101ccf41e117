"""Lets the model of a text run write. Importing this does not import torch."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from swarmstep.errors import UsageError
from swarmstep.settings import setting


@dataclass(frozen=True)
class SampleSettings:
    """What to write; out of range values are refused by `sample`."""

    tokens: int = setting(256, "bytes to write", "N")
    prompt: str = setting("\n", "what they follow", "TEXT")
    window: int = setting(16, "bytes that a sweep predicts at once", "N")
    sequential: bool = setting(False, "one byte after the other: --window 1")
    temperature: float = setting(
        1.0, "1: as the model believes; lower: more probable text; 0: the most probable", "X"
    )
    seed: int = setting(0, "seed of the noise", "S")


class Written(NamedTuple):
    """What was written, without the prompt; calls of the model; seconds without loading it."""

    text: bytes
    sweeps: int
    seconds: float


def write(run: Path, settings: SampleSettings) -> Written:
    """Return what the model of a run writes.

    Args:
        run: its folder.
        settings: what to write.

    Raises:
        UsageError: the run is of another workload, or a setting is out of its range.
        CheckpointError: there is no run in the folder, or it is not done.
    """
    import torch

    from swarmstep.parallel import sample
    from swarmstep.train.model_file import load_model
    from swarmstep.train.run_folder import read_config
    from swarmstep.workloads.gpt import CONTEXT, GPT, with_cache
    from swarmstep.workloads.text import MODELS

    config = read_config(run, done=True)
    if config.workload != "text":
        raise UsageError(f"{run}: expected a run of the workload text, found {config.workload}")
    model = MODELS[str(config.model)]()
    assert isinstance(model, GPT)
    load_model(model.eval(), run / "model.safetensors")
    began = time.perf_counter()
    found = sample(
        with_cache(model),
        torch.tensor([list(settings.prompt.encode())], dtype=torch.int64),
        settings.tokens,
        window=1 if settings.sequential else settings.window,
        context=CONTEXT,
        seed=settings.seed,
        temperature=settings.temperature,
    )
    text = bytes(found.text[0, -settings.tokens :].tolist())
    return Written(text, found.sweeps, time.perf_counter() - began)
