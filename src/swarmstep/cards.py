"""What each method is, in a line: its traffic, memory and paper. Knows nothing of torch."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Card:
    """What tables and the command line show of a method.

    Args:
        name: as on the command line.
        title: what it does, in a few words.
        use: when it is a good choice, as far as was measured or its paper says.
        avoid: when it is not.
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
    use: str
    avoid: str
    traffic: str
    memory: str
    paper: str
    weighted: bool
    key: str = ""

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
        use="steps agree from round to round, and you can tune the momentum",
        avoid="you cannot tune: its fixed momentum overshoots in short runs",
        traffic=ALL_REDUCE,
        memory="2",
        paper="ICASSP 2016",
        weighted=True,
        key="chen2016bmuf",
    ),
    Card(
        name="ddp",
        title="gradients averaged by torch's DistributedDataParallel, real processes only",
        use="the network costs nothing, or you need the measure of what rare rounds save",
        avoid="the link is slow: it sends every gradient at every step",
        traffic=ALL_REDUCE,
        memory="1",
        paper=BASELINE,
        weighted=False,
    ),
    Card(
        name="diloco",
        title="an outer Nesterov optimizer on the mean's step",
        use="the inner rate is too low to raise, or you train text with Muon",
        avoid="a worker may be bad, or nothing can be tuned: the outer step is fixed and long",
        traffic=ALL_REDUCE,
        memory="2",
        paper="arXiv 2311.08105",
        weighted=True,
        key="douillard2023diloco",
    ),
    Card(
        name="easgd",
        title="workers on elastic strings around a common centre",
        use="workers should stay different and explore",
        avoid="you want the most from few steps: the centre lags behind",
        traffic=ALL_REDUCE,
        memory="1",
        paper="arXiv 1412.6651",
        weighted=True,
        key="zhang2015easgd",
    ),
    Card(
        name="fedpso",
        title="PSO-PS with the probe as fitness and a strong leader",
        use="you want to repeat the paper",
        avoid="you want the best model: pulling to one leader drops what other shards taught",
        traffic="(W-1)/W",
        memory="3",
        paper="Sensors 21(2) 2021",
        weighted=False,
        key="park2021fedpso",
    ),
    Card(
        name="gossip-exponential",
        title="average with one peer, 1, 2, 4, ... ranks away in turn",
        use="no all-reduce is available; it mixes faster than a ring",
        avoid="all workers must have the same weights at all times",
        traffic="min(1, W-1)",
        memory="0",
        paper="arXiv 2110.13363",
        weighted=False,
        key="ying2021exponential",
    ),
    Card(
        name="gossip-ring",
        title="average with the two neighbours on a ring",
        use="no all-reduce is available and only neighbours can talk",
        avoid="there are many workers: news crosses the ring slowly",
        traffic="min(2, W-1)",
        memory="0",
        paper="arXiv 1705.09056",
        weighted=False,
        key="lian2017dpsgd",
    ),
    Card(
        name="hierarchical",
        title="averaged inside a host, at each k-th round between hosts",
        use="links inside a host are fast and those between hosts slow",
        avoid="all links are alike: then it is local-sgd",
        traffic=ALL_REDUCE,
        memory="0",
        paper="arXiv 1808.07217",
        weighted=True,
        key="lin2020dont",
    ),
    Card(
        name="independent",
        title="every worker trains alone",
        use="you want to see what communication gains at all",
        avoid="you want one good model",
        traffic="0",
        memory="0",
        paper=BASELINE,
        weighted=False,
    ),
    Card(
        name="local-sgd",
        title="weights averaged every n steps",
        use="shards are alike, workers are sound, and you want the simplest",
        avoid="a worker may be bad: it counts as much as the others",
        traffic=ALL_REDUCE,
        memory="0",
        paper="arXiv 1805.09767",
        weighted=True,
        key="stich2019local",
    ),
    Card(
        name="median",
        title="coordinate-wise median of the weights, robust to a minority",
        use="a minority of workers may be bad and no probe can be held out",
        avoid="there are many workers, or the link is slow: it gathers all vectors",
        traffic="W-1",
        memory="0",
        paper="arXiv 1803.01498",
        weighted=False,
        key="yin2018byzantine",
    ),
    Card(
        name="noloco",
        title="random pairs with an outer momentum, no all-reduce",
        use="no all-reduce is available, and you want an outer momentum",
        avoid="all workers must have the same weights at all times",
        traffic="(W - W%2)/W",
        memory="2",
        paper="arXiv 2506.10911",
        weighted=True,
        key="kolehmainen2025noloco",
    ),
    Card(
        name="osp",
        title="the gradient's unimportant part travels while the next step computes",
        use="gradients must be averaged at every step, with SGD, where DDP has little to overlap with",
        avoid="the optimizer is Adam or Muon, or lr times curvature is near its limit",
        traffic=ALL_REDUCE,
        memory="1",
        paper="arXiv 2306.16926",
        weighted=True,
        key="chen2023osp",
    ),
    Card(
        name="papa",
        title="a population pushed slowly toward its mean",
        use="workers should stay a population, to be merged at the end",
        avoid="you want the most from few steps",
        traffic=ALL_REDUCE,
        memory="0",
        paper="arXiv 2304.03094",
        weighted=True,
        key="jolicoeur2024papa",
    ),
    Card(
        name="pso-ps",
        title="particle swarm: pulled to the best worker and to one's own best",
        use="you need the reference that this project started from",
        avoid="you want the best model: it is below averaging at every n that was measured",
        traffic="(W-1)/W",
        memory="3",
        paper="arXiv 2009.03816",
        weighted=False,
        key="ye2020psops",
    ),
    Card(
        name="slowmo",
        title="the mean's step, with slow momentum in units of a gradient",
        use="the inner optimizer is SGD and you can tune the slow momentum",
        avoid="the inner optimizer is not SGD, or nothing can be tuned",
        traffic=ALL_REDUCE,
        memory="2",
        paper="arXiv 1910.00643",
        weighted=True,
        key="wang2020slowmo",
    ),
    Card(
        name="swarm",
        title="informed swarm: drawn to all trusted workers, with momentum",
        use="you have no reason for another: with a probe it finds out by itself whom to trust",
        avoid="workers may lie on purpose: a worker judges itself",
        traffic=ALL_REDUCE,
        memory="2",
        paper="Mendes et al. 2004",
        weighted=True,
        key="mendes2004fully",
    ),
    Card(
        name="synchronous",
        title="gradients averaged at every step",
        use="the network costs next to nothing, or n = 1 is a must",
        avoid="the link is slow: it sends every gradient at every step",
        traffic=ALL_REDUCE,
        memory="0",
        paper=BASELINE,
        weighted=True,
    ),
    Card(
        name="trimmed-mean",
        title="coordinate-wise mean of the weights without the extremes",
        use="few workers may be bad, more of the sound ones should count than in a median, and there is no probe",
        avoid="there are many workers, or the link is slow: it gathers all vectors",
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
            use="machines differ by factors, come and go, and hold like data",
            avoid="a worker may be bad, or holds data that no other has: the fast get more say",
            traffic="1",
            memory="1",
            paper="arXiv 2310.20452",
            weighted=False,
            key="islamov2024asgrad",
        ),
        Card(
            name="layup",
            title="each layer goes to a random peer during the backward pass",
            use="nobody may wait and there should be no server",
            avoid="all workers must have the same weights at all times",
            traffic="1",
            memory="2",
            paper="arXiv 2410.05985",
            weighted=False,
            key="fokam2025layup",
        ),
        Card(
            name="pd-asgd",
            title="forward and backward passes side by side; each layer's step at once",
            use="you want to see in the simulator what passes side by side would bring",
            avoid="you want real processes: there are none for it",
            traffic="1",
            memory="2",
            paper="arXiv 2410.05985",
            weighted=False,
            key="fokam2025layup",
        ),
        Card(
            name="quorum",
            title="rounds that close without the slowest; what comes late enters the next one",
            use="a worker is slow now and then, and the others should not wait",
            avoid="a worker may be bad, or results must not be late",
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
            use="data may not leave their place, and there are no gradients",
            avoid="you need convolutions, or anything but layers of inputs, least squares and ReLU",
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
    "halos": "kim2025halos",
    "heloco": "alasif2026heloco",
    "jacobi": "song2021accelerating",
    "localdrop": "lu2021localdrop",
    "muloco": "therien2025muloco",
    "nm": "zhou2021nm",
    "powersgd": "vogels2019powersgd",
    "sparseloco": "sarfi2025sparseloco",
    "spiking": "sun2022ipu",
    "streaming-diloco": "douillard2025streaming",
}
