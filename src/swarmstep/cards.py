"""What each method is, in a line: its traffic, memory and paper. Knows nothing of torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from swarmstep.advice import ADVICE, Advice


@dataclasses.dataclass(frozen=True)
class Card:
    """What tables and the command line show of a method.

    Args:
        name: as on the command line.
        title: what it does, in a few words.
        traffic: what a round costs each worker, sent, as a mean over the W workers, in units of P vector elements
            (the vector holds parameters and averaged buffers), without the roll call.
        memory: what it keeps between rounds, in units of P.
        paper: where it was published, or "baseline".
        weighted: whether the workers' weights in the roll call (`Synchronizer.step(loss, weight=...)`) count;
            otherwise all that take part count the same.
        key: of the paper's entry in `papers.bib`; empty where there is no paper.
    """

    name: str
    title: str
    traffic: str
    memory: str
    paper: str
    weighted: bool
    key: str = ""

    @property
    def advice(self) -> Advice:
        """When to use it and when not, what speaks against it, and who measured that."""
        return ADVICE[self.name]

    @property
    def bibtex(self) -> str:
        """The paper's BibTeX entry; empty where there is no paper."""
        return bibtex(self.key) if self.key else ""


def bibtex(key: str) -> str:
    """Return the entry of `papers.bib` with this key.

    Raises:
        KeyError: there is none.
    """
    for entry in Path(__file__).with_name("papers.bib").read_text(encoding="utf-8").split("\n\n"):
        if entry.partition("{")[2].partition(",")[0] == key:
            return entry.strip()
    raise KeyError(key)


ALL_REDUCE = "2 (W-1)/W"
BASELINE = "baseline"

_ALL = (
    Card(
        name="bmuf",
        title="the mean's step, with block momentum",
        traffic=ALL_REDUCE,
        memory="2",
        paper="ICASSP 2016",
        weighted=True,
        key="chen2016bmuf",
    ),
    Card(
        name="ddp",
        title="gradients averaged by torch's DistributedDataParallel, real processes only",
        traffic=ALL_REDUCE,
        memory="1",
        paper=BASELINE,
        weighted=False,
    ),
    Card(
        name="diloco",
        title="an outer Nesterov optimizer on the mean's step",
        traffic=ALL_REDUCE,
        memory="2",
        paper="arXiv 2311.08105",
        weighted=True,
        key="douillard2023diloco",
    ),
    Card(
        name="easgd",
        title="workers on elastic strings around a common centre",
        traffic=ALL_REDUCE,
        memory="1",
        paper="arXiv 1412.6651",
        weighted=True,
        key="zhang2015easgd",
    ),
    Card(
        name="edit",
        title="DiLoCo, with steps that are out of line left out, tensor by tensor",
        traffic=ALL_REDUCE,
        memory="2",
        paper="arXiv 2412.07210",
        weighted=False,
        key="cheng2025edit",
    ),
    Card(
        name="fedpso",
        title="PSO-PS with the probe as fitness and a strong leader",
        traffic="(W-1)/W",
        memory="3",
        paper="Sensors 21(2) 2021",
        weighted=False,
        key="park2021fedpso",
    ),
    Card(
        name="gasloc",
        title="an outer Nesterov optimizer with neighbours on a graph, no all-reduce",
        traffic="(W - W%2)/W",
        memory="2",
        paper="arXiv 2606.11081",
        weighted=False,
        key="cagnasso2026gasloc",
    ),
    Card(
        name="gossip-exponential",
        title="average with one peer, 1, 2, 4, ... ranks away in turn",
        traffic="min(1, W-1)",
        memory="0",
        paper="arXiv 2110.13363",
        weighted=False,
        key="ying2021exponential",
    ),
    Card(
        name="gossip-ring",
        title="average with the two neighbours on a ring",
        traffic="min(2, W-1)",
        memory="0",
        paper="arXiv 1705.09056",
        weighted=False,
        key="lian2017dpsgd",
    ),
    Card(
        name="hierarchical",
        title="averaged inside a host, at each k-th round between hosts",
        traffic=ALL_REDUCE,
        memory="0",
        paper="arXiv 1808.07217",
        weighted=True,
        key="lin2020dont",
    ),
    Card(
        name="independent",
        title="every worker trains alone",
        traffic="0",
        memory="0",
        paper=BASELINE,
        weighted=False,
    ),
    Card(
        name="local-sgd",
        title="weights averaged every n steps",
        traffic=ALL_REDUCE,
        memory="0",
        paper="arXiv 1805.09767",
        weighted=True,
        key="stich2019local",
    ),
    Card(
        name="median",
        title="coordinate-wise median of the weights, robust to a minority",
        traffic="W-1",
        memory="0",
        paper="arXiv 1803.01498",
        weighted=False,
        key="yin2018byzantine",
    ),
    Card(
        name="noloco",
        title="random pairs with an outer momentum, no all-reduce",
        traffic="(W - W%2)/W",
        memory="2",
        paper="arXiv 2506.10911",
        weighted=True,
        key="kolehmainen2025noloco",
    ),
    Card(
        name="osp",
        title="the gradient's unimportant part travels while the next step computes",
        traffic=ALL_REDUCE,
        memory="1",
        paper="arXiv 2306.16926",
        weighted=True,
        key="chen2023osp",
    ),
    Card(
        name="papa",
        title="a population pushed slowly toward its mean",
        traffic=ALL_REDUCE,
        memory="0",
        paper="arXiv 2304.03094",
        weighted=True,
        key="jolicoeur2024papa",
    ),
    Card(
        name="pso-ps",
        title="particle swarm: pulled to the best worker and to one's own best",
        traffic="(W-1)/W",
        memory="3",
        paper="arXiv 2009.03816",
        weighted=False,
        key="ye2020psops",
    ),
    Card(
        name="slowmo",
        title="the mean's step, with slow momentum in units of a gradient",
        traffic=ALL_REDUCE,
        memory="2",
        paper="arXiv 1910.00643",
        weighted=True,
        key="wang2020slowmo",
    ),
    Card(
        name="sparta",
        title="half a percent of the weights averaged at each step",
        traffic="2 (W-1)/W / 200",
        memory="0",
        paper="Beton et al. 2025",
        weighted=True,
        key="beton2025sparta",
    ),
    Card(
        name="sparta-diloco",
        title="SPARTA's rounds, and in each 500th one DiLoCo's outer step",
        traffic="2 (W-1)/W (1/200 + 199/200/500)",
        memory="2",
        paper="Beton et al. 2025",
        weighted=True,
        key="beton2025sparta",
    ),
    Card(
        name="swarm",
        title="informed swarm: drawn to all trusted workers, with momentum",
        traffic=ALL_REDUCE,
        memory="2",
        paper="Mendes et al. 2004",
        weighted=True,
        key="mendes2004fully",
    ),
    Card(
        name="synchronous",
        title="gradients averaged at every step",
        traffic=ALL_REDUCE,
        memory="0",
        paper=BASELINE,
        weighted=True,
    ),
    Card(
        name="trimmed-mean",
        title="coordinate-wise mean of the weights without the extremes",
        traffic="W-1",
        memory="0",
        paper="arXiv 1803.01498",
        weighted=False,
        key="yin2018byzantine",
    ),
)

# Every method by its name on the command line, in alphabetical order.
CARDS: dict[str, Card] = {card.name: card for card in _ALL}

# The asynchronous methods, which have no rounds: traffic is for each job or step.
ASYNCHRONOUS: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="asgrad",
            title="a server steps at each result that arrives; gradients, or displacements as in DiLoCo",
            traffic="1",
            memory="1",
            paper="arXiv 2310.20452",
            weighted=False,
            key="islamov2024asgrad",
        ),
        Card(
            name="layup",
            title="each layer goes to a random peer during the backward pass",
            traffic="1",
            memory="2",
            paper="arXiv 2410.05985",
            weighted=False,
            key="fokam2025layup",
        ),
        Card(
            name="pd-asgd",
            title="forward and backward passes side by side; each layer's step at once",
            traffic="1",
            memory="2",
            paper="arXiv 2410.05985",
            weighted=False,
            key="fokam2025layup",
        ),
        Card(
            name="quorum",
            title="rounds that close without the slowest; what comes late enters the next one",
            traffic="1",
            memory="1",
            paper="arXiv 2604.21428",
            weighted=True,
            key="douillard2026decoupled",
        ),
    )
}

# The methods without gradients, by --method: P is then the size of a layer's O, Q x n, and a round a mean of it.
LAYERWISE: dict[str, Card] = {
    card.name: card
    for card in (
        Card(
            name="ssfn",
            title="a network that grows layer by layer by least squares; examples stay where they are",
            traffic="mixings x degree",
            memory="3 + 2 n/Q",
            paper="arXiv 2009.13982",
            weighted=True,
            key="liang2020ssfn",
        ),
    )
}

# What can be cited: the methods with a paper, and papers of inner optimizers, options, codecs and other parts.
CITATIONS: dict[str, str] = {
    **{card.name: card.key for card in (*_ALL, *ASYNCHRONOUS.values(), *LAYERWISE.values()) if card.key},
    "coda": "guo2020coda",
    "codasca": "yuan2021codasca",
    "des-loc": "iacob2025desloc",
    "gpa": "defazio2025gpa",
    "eager": "kale2025eager",
    "factored-gossip": "koneputugodage2026factored",
    "halos": "kim2025halos",
    "heloco": "alasif2026heloco",
    "jacobi": "song2021accelerating",
    "localdrop": "lu2021localdrop",
    "mt-dao": "iacob2026mtdao",
    "muloco": "therien2025muloco",
    "nm": "zhou2021nm",
    "palsgd": "naganuma2025palsgd",
    "powersgd": "vogels2019powersgd",
    "snoo": "kallusky2025snoo",
    "sparseloco": "sarfi2025sparseloco",
    "spiking": "sun2022ipu",
    "streaming-diloco": "douillard2025streaming",
}
