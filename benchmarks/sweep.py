"""How many sweeps take the place of how many steps: a recurrent network over workers, and sampling of text.

    python benchmarks/sweep.py chain --seeds 5
    python benchmarks/sweep.py text --seeds 5
    python benchmarks/sweep.py show

`chain`: a recurrent network reads windows of 128 bytes of text, cut over 4 workers; sweeps until nothing changes
by more than the tolerance, before and after training. `text`: a trained GPT writes 512 bytes, one by one and
by sweeps, with and without a cache of keys and values. Kept in benchmarks/results/sweep.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from paired import between
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from swarmstep import Comm, simulate
from swarmstep.parallel import sample, sweep
from swarmstep.seeding import generator, mix
from swarmstep.train.build import resolve
from swarmstep.train.config import Config
from swarmstep.train.in_process import simulated
from swarmstep.train.job import Job
from swarmstep.train.model_file import load_model
from swarmstep.workloads import load
from swarmstep.workloads.gpt import BYTES, CONTEXT, GPT, with_cache
from swarmstep.workloads.text import standard_library, windows

FILE = Path(__file__).parent / "results" / "sweep.json"
WORKERS, LENGTH, HIDDEN, BATCH, STEPS = 4, 128, 128, 16, 400
TOLERANCES = (1e-2, 1e-4)
TOKENS, WINDOWS, TEMPERATURES = 512, (1, 4, 8, 16, 32), (1.0, 0.5, 0.0)


class Recurrent(nn.Module):
    """Predicts each byte of a window from those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(BYTES, 64), nn.Linear(HIDDEN, BYTES)
        self.cell = nn.RNNCell(64, HIDDEN)

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(self.head(states).flatten(0, 1), targets.flatten(), reduction="sum")


def chain(seed: int) -> list[dict[str, Any]]:
    """Return the sweeps of an untrained network and of the same, trained."""
    data = windows(standard_library().train, LENGTH)
    torch.manual_seed(mix(seed))
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    rows = measured(model, data.inputs[:BATCH], data.targets[:BATCH], seed, "untrained")
    for step in range(STEPS):
        batch = torch.randint(len(data), (BATCH,), generator=generator(seed, step))
        h, states = torch.zeros(BATCH, HIDDEN), list[Tensor]()
        for x in model.embedding(data.inputs[batch].long().T):
            h = model.cell(x, h)
            states.append(h)
        loss = model.loss(torch.stack(states), data.targets[batch].T) / BATCH / LENGTH
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return rows + measured(
        model, data.inputs[:BATCH], data.targets[:BATCH], seed, f"loss {float(loss.detach()):.2f}"
    )


def measured(model: Recurrent, text: Tensor, targets: Tensor, seed: int, state: str) -> list[dict[str, Any]]:
    """Return the sweeps forward and backward, and the errors, by segments and tolerance."""
    inputs, targets, start = model.embedding(text.long().T).detach(), targets.T, torch.zeros(BATCH, HIDDEN)
    exact, h = list[Tensor](), start
    for x in inputs:
        h = model.cell(x, h)
        exact.append(h)
    parameters = list(model.cell.parameters())
    gradient = flat(torch.autograd.grad(model.loss(torch.stack(exact), targets), parameters))

    def work(comm: Comm, segments: int, tolerance: float) -> tuple[int, int, Tensor]:
        own = slice(comm.rank * LENGTH // WORKERS, (comm.rank + 1) * LENGTH // WORKERS)
        found = sweep(
            lambda h, x: model.cell(x, h), start, inputs[own], comm, segments=segments, tolerance=tolerance
        )
        states = torch.stack(found.states)
        return found.sweeps, found.backward(model.loss(states, targets[own])), states.detach()

    rows = list[dict[str, Any]]()
    for segments in (1, 4, LENGTH // WORKERS):
        for tolerance in TOLERANCES:
            model.zero_grad()
            found = simulate(lambda comm, s=segments, t=tolerance: work(comm, s, t), WORKERS)
            summed = flat([p.grad for p in parameters if p.grad is not None])  # the workers here share parameters
            error = (torch.cat([states for *_, states in found]) - torch.stack(exact)).abs().max()
            row = {"seed": seed, "state": state, "segments": segments * WORKERS, "tolerance": tolerance}
            row |= {"forward": found[0][0], "backward": found[0][1], "error": float(error.detach())}
            rows.append({**row, "gradient_error": float((summed - gradient).norm() / gradient.norm())})
            print(rows[-1], flush=True)
    return rows


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def trained_gpt(name: str, steps: int) -> tuple[GPT, float]:
    """Return the text workload's model, trained by one worker with the workload's settings, and its test loss."""
    workload = load("text")
    config = Config("text", "independent", workers=1, model=name, steps=steps, eval_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        summary = simulated(resolve(config, workload), workload, Job(quiet=True, out=out))
        model = workload.models[name]()
        load_model(model, out / "model.safetensors")
    assert isinstance(model, GPT)
    return model.eval(), summary["test_loss"]


def text(model: GPT, loss: float, name: str, seed: int) -> list[dict[str, Any]]:
    """Return sweeps and seconds to write 512 bytes, with the noise of a seed."""
    start = windows(standard_library().test, CONTEXT).inputs[seed * 100 : seed * 100 + 1, :32].long()
    rows = list[dict[str, Any]]()
    for temperature in TEMPERATURES:
        sequential: Tensor | None = None
        for cached in (True, False):
            for window in WINDOWS:
                predict = with_cache(model) if cached else lambda text, known: model(text)
                began = time.process_time()
                found = sample(
                    predict, start, TOKENS, window=window, context=CONTEXT, seed=seed, temperature=temperature
                )
                seconds = time.process_time() - began
                sequential = found.text if sequential is None else sequential
                row = {"model": name, "loss": loss, "seed": seed, "temperature": temperature, "cached": cached}
                row |= {"window": window, "sweeps": found.sweeps, "seconds": seconds}
                rows.append({**row, "same": bool(found.text.equal(sequential))})
        print(*rows[-2 * len(WINDOWS) :], sep="\n", flush=True)
    return rows


def show(content: dict[str, Any]) -> None:
    """Print means and 95 % intervals over the seeds."""
    chains: list[dict[str, Any]] = content.get("chain", [])
    for row in chains:
        row["state"] = row["state"].split()[0]
    for key in sorted({(r["state"] == "loss", r["segments"], -r["tolerance"]) for r in chains}):
        own = [r for r in chains if (r["state"] == "loss", r["segments"], -r["tolerance"]) == key]
        figures = [f"{n} {between([r[n] for r in own], 1)}" for n in ("forward", "backward")]
        worst = [f"largest {n} {max(r[n] for r in own):.1e}" for n in ("error", "gradient_error")]
        print("trained" if key[0] else "untrained", f"{key[1]} segments, {-key[2]:g}:", *figures, *worst)
    texts: list[dict[str, Any]] = content.get("text", [])
    for key in sorted({(r["model"], -r["temperature"], not r["cached"], r["window"]) for r in texts}):
        own = [r for r in texts if (r["model"], -r["temperature"], not r["cached"], r["window"]) == key]
        alone = {
            r["seed"]: r["seconds"]
            for r in texts
            if (r["model"], -r["temperature"], r["cached"], r["window"]) == (*key[:2], True, 1)
        }
        sweeps = between([r["sweeps"] / TOKENS for r in own], 3)
        times = between([r["seconds"] / alone[r["seed"]] for r in own], 2)
        equal = sum(r["same"] for r in own)
        cache = "no cache" if key[2] else "cache"
        print(f"{key[0]} temperature {-key[1]:g} {cache} window {key[3]}: {sweeps} sweeps a byte,", end=" ")
        print(f"{times} of the time of one after the other with a cache, {equal} of {len(own)} equal")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("chain", "text", "show"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", default="gpt-small", help="of the workload text")
    parser.add_argument("--steps", type=int, default=1500, help="of its training")
    args = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = json.loads(FILE.read_text()) if FILE.exists() else {}
    if args.part == "chain":
        content["chain"] = [row for seed in range(args.seeds) for row in chain(seed)]
    elif args.part == "text":
        model = trained_gpt(args.model, args.steps)
        rows = [row for seed in range(args.seeds) for row in text(*model, args.model, seed)]
        content["text"] = [row for row in content.get("text", []) if row["model"] != args.model] + rows
    if args.part != "show":
        content["command"] = "python benchmarks/sweep.py chain; python benchmarks/sweep.py text"
        FILE.write_text(json.dumps(content, indent=0) + "\n")
    show(content)


if __name__ == "__main__":
    main()
