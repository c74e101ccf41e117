"""The pages of the documentation: their code blocks, and the names that pieces of a loop take as given."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy

import swarmstep
from swarmstep import Every, Group, LocalSGD, Synchronizer

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- not run: ([^\n]+) -->\n)?```(\S*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code: its language ("" for formulas and output), its text, and why it is not run ("": it is)."""

    language: str
    text: str
    reason: str


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in their order."""
    return [Block(m[2], m[3], m[1] or "") for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def runnable(language: str) -> list[Path]:
    """Return the pages that have blocks of a language which are run."""
    return [page for page in PAGES if any(b.language == language and not b.reason for b in blocks(page))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def given(page: Path, comm: Group) -> dict[str, Any]:
    """Return what a piece of a training loop on this page takes as given: public names, a model, data, a loss."""
    torch.manual_seed(comm.rank)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    batches = [(torch.randn(16, 8), torch.randint(3, (16,))) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    names: dict[str, Any] = {name: getattr(swarmstep, name) for name in swarmstep.__all__}
    names |= {
        "__name__": "block",
        "torch": torch,
        "nn": nn,
        "os": os,
        "Path": Path,
        "cross_entropy": cross_entropy,
    }
    names |= {"comm": comm, "model": model, "optimizer": optimizer, "optimizers": [optimizer], "batches": batches}
    names |= {"inputs": batches[0][0], "targets": batches[0][1], "lr": 0.1, "weight": 16.0}
    names |= {
        "strategy": LocalSGD(when=Every(2)),
        "loss_fn": lambda of, batch: cross_entropy(of(batch[0]), batch[1]),
    }
    names["train"] = lambda of, *optimizers: None
    names["sync"] = Synchronizer(model, LocalSGD(when=Every(16)), comm)
    names["loss"] = names["loss_fn"](model, batches[0])
    return names | OF_PAGE.get(page.name, dict)()


def _of_sweeps() -> dict[str, Any]:
    """Return a text model, and a cell whose states a chain of steps goes through."""
    cell = nn.RNNCell(5, 6)
    words = nn.Sequential(nn.Embedding(256, 8), nn.Linear(8, 256))
    return {
        "model": words,
        "prompt": torch.zeros(1, 4, dtype=torch.int64),
        "cell": cell,
        "start": torch.zeros(2, 6),
        "inputs": torch.randn(16, 2, 5),
        "loss_of": lambda states: states.square().mean(),
    }


def _of_jobs() -> dict[str, Any]:
    def batch(worker: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(1000 * worker + step)
        return torch.randn(4, 8, generator=generator), torch.randint(3, (4,), generator=generator)

    return {"batch": batch}


def _of_two_classes() -> dict[str, Any]:
    batches = [(torch.randn(16, 8), torch.arange(16) % 2) for _ in range(4)]
    return {"model": nn.Sequential(nn.Linear(8, 1), nn.Flatten(0)), "batches": batches}


OF_PAGE = {
    "jacobi.md": _of_sweeps,
    "asynchronous.md": _of_jobs,
    "rare-positives.md": _of_two_classes,
}
