"""Text as collective calls."""

from __future__ import annotations

import torch

from swarmstep.comm.base import Comm


def gather_text(text: str, comm: Comm) -> list[str]:
    """Return the texts of all ranks, in rank order; collective."""
    content = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = comm.gather(torch.tensor(len(content)))
    if not lengths.any():
        return [""] * comm.size
    padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
    padded[: len(content)] = content
    rows = comm.gather(padded)
    return [bytes(row[:n].tolist()).decode() for row, n in zip(rows, lengths.tolist(), strict=True)]
