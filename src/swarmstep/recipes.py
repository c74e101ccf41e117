"""Methods that are a strategy with certain options: what they are in a line, and how to ask for them.

Knows nothing of torch.
"""

from __future__ import annotations

import dataclasses

from swarmstep.cards import Card


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A method that no strategy is named after.

    Args:
        card: as of a strategy.
        command: the options of ``swarmstep train`` that make it, or the name in one's own loop.
        measured: who has measured what is claimed of it.
    """

    card: Card
    command: str
    measured: str


_SEVERAL = "the authors only; not measured by us"
_ALONE = "the authors; by us one short run on text, without a gain (docs/results.md)"

_ALL = (
    Recipe(
        Card(
            name="des-loc",
            title="optimizers' states are averaged, too, each in every k-th round",
            traffic="+ 2 (W-1)/W of each state averaged",
            memory="the strategy's",
            paper="arXiv 2505.22549",
            weighted=True,
            key="iacob2025desloc",
        ),
        "--strategy local-sgd --optimizer adamw --optimizer-state exp_avg=3,exp_avg_sq=6",
        _SEVERAL,
    ),
    Recipe(
        Card(
            name="gpa",
            title="one worker: gradients at, and the model as, a running mean of the optimizer's weights",
            traffic="0",
            memory="2",
            paper="arXiv 2512.17131",
            weighted=False,
            key="defazio2025gpa",
        ),
        "swarmstep.objectives.PrimalAveraging(optimizer), in your own loop",
        _ALONE,
    ),
    Recipe(
        Card(
            name="mt-dao",
            title="Adam with a momentum that outlives the steps between rounds",
            traffic="the strategy's",
            memory="the strategy's",
            paper="arXiv 2510.05361",
            weighted=True,
            key="iacob2026mtdao",
        ),
        "--strategy local-sgd --optimizer mt-dao --optimizer-state slow_avg=3,exp_avg_sq=6",
        _SEVERAL,
    ),
    Recipe(
        Card(
            name="muloco",
            title="DiLoCo with Muon as the inner optimizer",
            traffic="2 (W-1)/W",
            memory="2",
            paper="arXiv 2505.23725",
            weighted=True,
            key="therien2025muloco",
        ),
        "--strategy diloco --optimizer muon --every 30 --set lr=none --set momentum=none",
        "the authors; a small trial of ours on text agrees, in which most of the lead was Muon's own",
    ),
    Recipe(
        Card(
            name="snoo",
            title="DiLoCo with one worker: an outer Nesterov step each n steps",
            traffic="0",
            memory="2",
            paper="arXiv 2510.15830",
            weighted=False,
            key="kallusky2025snoo",
        ),
        "--strategy diloco --workers 1 --every 30 --set lr=none --set momentum=none",
        _ALONE,
    ),
    Recipe(
        Card(
            name="sparseloco",
            title="64 of 4096 elements in 2 bits each, with error feedback, to all workers",
            traffic="(W-1)/146",
            memory="4",
            paper="arXiv 2508.15706",
            weighted=True,
            key="sarfi2025sparseloco",
        ),
        "--strategy diloco --set lr=1 --set momentum=0 --codec sparseloco --every 30",
        "the authors; by us the bytes, and short runs on text (docs/results.md)",
    ),
)

RECIPES: dict[str, Recipe] = {recipe.card.name: recipe for recipe in _ALL}
