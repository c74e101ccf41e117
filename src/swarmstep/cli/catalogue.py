"""The methods as a table, and their papers."""

from __future__ import annotations

from swarmstep.errors import UsageError
from swarmstep.strategies import STRATEGIES
from swarmstep.train.config import DDP, SYNCHRONOUS

# Papers of what is not a strategy: options of the runtime, and codecs.
_OTHERS = {
    "sparseloco": """@article{sarfi2025sparseloco,
  title   = {Communication Efficient {LLM} Pre-training with {SparseLoCo}},
  author  = {Amir Sarfi and Benjamin Th{\\'e}rien and Joel Lidin and Eugene Belilovsky},
  year    = {2025},
  eprint  = {2508.15706},
  archivePrefix = {arXiv}
}""",
    "streaming-diloco": """@article{douillard2025streaming,
  title   = {Streaming {DiLoCo} with overlapping communication: Towards a Distributed Free Lunch},
  author  = {Arthur Douillard and others},
  year    = {2025},
  eprint  = {2501.18512},
  archivePrefix = {arXiv}
}""",
}
_COLUMNS = ("name", "what it does", "traffic (P)", "memory (P)", "paper")


def rows() -> list[dict[str, str]]:
    """Return one row for each method: name, title, traffic of a round and memory in units of P, paper."""
    found = [
        {
            "name": name,
            "title": kind.card.title,
            "traffic": kind.card.traffic,
            "memory": kind.card.memory,
            "paper": kind.card.paper,
        }
        for name, kind in STRATEGIES.items()
    ]
    baselines = [
        {"name": name, "title": title, "traffic": "2 (W-1)/W", "memory": memory, "paper": "baseline"}
        for name, title, memory in (
            (SYNCHRONOUS, "gradients averaged at every step", "0"),
            (DDP, "the same by torch's DistributedDataParallel, real processes only", "1"),
        )
    ]
    return sorted([*found, *baselines], key=lambda row: row["name"])


def table() -> str:
    """Return the rows as aligned text."""
    cells = [_COLUMNS, *(tuple(row.values()) for row in rows())]
    widths = [max(len(row[i]) for row in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    note = "traffic: sent by each worker in a round, mean over the W workers; P: elements of the flat vector"
    return "\n".join([*(line.rstrip() for line in lines), "", note])


def bibtex(name: str) -> str:
    """Return the BibTeX entry of a method's paper.

    Raises:
        UsageError: no such method, or one without a paper.
    """
    citable = _OTHERS | {key: kind.card.bibtex for key, kind in STRATEGIES.items() if kind.card.bibtex}
    if name not in citable:
        raise UsageError(f"no paper for {name!r}; expected one of {', '.join(sorted(citable))}")
    return citable[name]
