"""When to use a method and when not, what speaks against it, and who measured that. Plain data; knows no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Finding(NamedTuple):
    """What speaks against a method.

    `what` in a sentence; `who` measured or says so: "ours" with the place, the authors, or others.
    """

    what: str
    who: str


class Advice(NamedTuple):
    """What to know before a method is chosen."""

    use_when: str
    avoid_when: str
    against: tuple[Finding, ...]


NOT_MEASURED = Finding("Nobody but its authors has compared it, as far as we know.", "nobody")
_BAD_WORKER = Finding(
    "Nothing holds a bad worker back: with one noisy worker of four the test loss on MNIST was 0.488, 0.096 "
    "with the swarm (n = 16, one seed).",
    "ours, docs/choosing.md",
)
_NO_GUARD = Finding("Nothing holds a bad worker back.", "by construction; no measurement")
_NO_MEAN = Finding(
    "Workers end apart, and a bad worker's weights spread like any other's.", "by construction; no measurement"
)
_STALE_NESTEROV = Finding(
    "Nesterov momentum at the usual setting is the least stable choice where steps come late; use no outer "
    "momentum.",
    "the authors of CGAD, arXiv 2605.09126",
)

_AFTER_FINE_TUNING = Finding(
    "nanochat: equal loss in pre-training, then worse MMLU, GSM8K and HumanEval after mid-training "
    "and fine-tuning; going back to DDP did not recover it.",
    "the authors of arXiv 2511.13761",
)
_ALONE = Finding(
    "In 640 steps on text no better than the optimizer alone, each with its best rate.",
    "ours, docs/results.md, one seed",
)
_WEAK = Finding("Weak beyond 16 workers.", "its authors, second hand")
_EACH_STEP = Finding(
    "Each step pays the latency of a round; use delay to hide it.", "by construction; no measurement"
)
_SHORT_RUNS = Finding(
    "Momentum 0.9 is too much for short runs: digits, n = 8, loss 0.476, local SGD 0.144 (one seed).",
    "ours, docs/methods/diloco.md",
)
_NO_GAIN = Finding(
    "Not told apart from averaging where an all-reduce works: test loss 0.039 to 0.041, averaging 0.042 (MNIST,"
    " n = 16, tuned, one seed).",
    "ours, benchmarks/results/evidence-mnist.json",
)

# By the method's name.
ADVICE: Mapping[str, Advice] = {
    "asgrad": Advice(
        use_when="Workers differ much in speed, see like data, and reach one server.",
        avoid_when="Shards differ and some workers are slow: what fast workers see counts more.",
        against=(
            Finding(
                "Without rescaling the minimum moves to the fast workers': 0.92 in place of 1.5 on quadratics "
                "with speeds 1 to 1/4; scaling stale results down makes it worse, 0.39.",
                "ours, docs/asynchronous.md",
            ),
            _STALE_NESTEROV,
        ),
    ),
    "bmuf": Advice(
        use_when="Rounds are long, and a method with a long record in speech recognition is wanted.",
        avoid_when="Rounds are short: its default momentum multiplies the mean's step by W.",
        against=(
            Finding(
                "Digits, n = 8, defaults: accuracy 0.881 to 0.903; 0.958 to 0.964 with nesterov=true (three "
                "seeds).",
                "ours, docs/methods/bmuf.md",
            ),
        ),
    ),
    "ddp": Advice(
        use_when="The network is fast: nothing is nearer to training on one machine.",
        avoid_when="A gradient takes longer to send than to compute.",
        against=(
            Finding(
                "Four GPUs at 50 Mbit/s computed 0.04 % of the time.",
                "diloco-measured (Adnan082, 2026), not its authors",
            ),
            Finding(
                "Ten times as long as DiLoCo at n = 64 to the same accuracy at 100 Mbit/s (15.1 to 1.42 times "
                "an infinitely fast network).",
                "ours, benchmarks/LOG.md",
            ),
        ),
    ),
    "des-loc": Advice(
        use_when="AdamW's moments shall agree between workers, and the link has room for them now and then.",
        avoid_when="A delay hides the wire: states cannot be averaged late.",
        against=(
            Finding(
                "Each averaged state costs as much as the weights in its rounds, and is never coded.",
                "by construction; no measurement",
            ),
            Finding(
                "A mean of second moments is larger than the second moment of the mean gradient, so steps are "
                "shorter.",
                "by construction; no measurement",
            ),
            NOT_MEASURED,
        ),
    ),
    "diloco": Advice(
        use_when="Workers are trusted, runs are long, rounds have hundreds of steps; with Muon for transformers.",
        avoid_when="A worker may be bad, the run has few rounds, or the model is to be fine-tuned for benchmarks.",
        against=(
            _AFTER_FINE_TUNING,
            Finding(
                "On four GPUs with n = 128 it computed 11.6, 36, 72 and 87 % of the time at 50, 200, 1000 and "
                "5000 Mbit/s, 1.08 to 1.92 times worse than the formula; none of 12 settings reached one GPU's "
                "loss in 400,000 tokens.",
                "diloco-measured (Adnan082, 2026), not its authors",
            ),
            Finding(
                "One noisy worker of four: test loss 2.393 on MNIST, 0.096 with the swarm (n = 16, one seed).",
                "ours, docs/choosing.md",
            ),
            _SHORT_RUNS,
            _STALE_NESTEROV,
        ),
    ),
    "easgd": Advice(
        use_when="Workers shall explore around a common centre.",
        avoid_when="Traffic counts: it sends as much as an average and uses only a part of it.",
        against=(
            Finding(
                "Test loss 0.047 to 0.042 of averaging at the same traffic (MNIST, n = 16, tuned, 3 seeds).",
                "ours, benchmarks/results/evidence-mnist.json",
            ),
            _NO_GUARD,
        ),
    ),
    "edit": Advice(
        use_when="Runs of many hundred rounds, in which a worker's data or machine may suddenly go wrong.",
        avoid_when="Runs of fewer than some hundred rounds, or workers whose shards differ much.",
        against=(
            Finding(
                "A gate on a worker's own history, closed without a warm-up, left honest workers out (accuracy "
                "0.41, all well): lengths drift early on, and a steadily noisy worker looks normal to itself.",
                "ours, one trial before this method was built",
            ),
            Finding(
                "Weights by length let the worker that has most to learn count least.",
                "by construction; no measurement",
            ),
        ),
    ),
    "fedpso": Advice(
        use_when="FedPSO is to be reproduced.",
        avoid_when="Accuracy counts: one worker leads, and what the others have learnt is lost.",
        against=(
            Finding(
                "Test loss 0.127, averaging 0.042 (MNIST, n = 16, tuned, one seed).",
                "ours, benchmarks/results/evidence-mnist.json",
            ),
        ),
    ),
    "gasloc": Advice(
        use_when="There is no all-reduce, or some links are bad, and an outer momentum is wanted.",
        avoid_when="An all-reduce works: the same momentum on the exact mean (diloco) has no spread to pay for.",
        against=(
            NOT_MEASURED,
            _NO_MEAN,
            Finding(
                "With an overlapped mix, progress a token comparable to DiLoCo's or close to it: what is gained"
                " is time.",
                "the authors of arXiv 2606.22768, abstract",
            ),
        ),
    ),
    "gossip-exponential": Advice(
        use_when="There is no all-reduce and each worker can reach each.",
        avoid_when="Rounds are rare: log2 W of them pass before a worker has heard of all.",
        against=(_NO_GAIN, _NO_MEAN),
    ),
    "gossip-ring": Advice(
        use_when="There is no all-reduce and a worker reaches two neighbours only.",
        avoid_when="Many workers: what one learns needs W/2 rounds to the other side.",
        against=(
            _NO_GAIN,
            _NO_MEAN,
            Finding(
                "The spread shrinks by 1 - O(1/W^2) a round: the larger the ring, the slower.",
                "arithmetic of its matrix",
            ),
        ),
    ),
    "gpa": Advice(
        use_when="One worker trains, and no schedule of the rate is wanted.",
        avoid_when="There are rounds, which would undo it.",
        against=(
            Finding(
                "The model must be switched before it is evaluated, saved, or trained on.",
                "by construction; no measurement",
            ),
            _ALONE,
        ),
    ),
    "hierarchical": Advice(
        use_when="Hosts have several workers each, and the network between hosts is the bottleneck.",
        avoid_when="Hosts are unequal in size or come and go.",
        against=(_NO_GUARD,),
    ),
    "independent": Advice(
        use_when="It must be shown what communication gains at all.",
        avoid_when="Anything else.",
        against=(
            Finding(
                "Test loss 0.074 on MNIST, averaging 0.040 (LeNet-5, 4 workers, n = 16, 3 seeds).",
                "ours, benchmarks/LOG.md",
            ),
        ),
    ),
    "layup": Advice(
        use_when="Workers differ in speed, there is no server, and the inner optimizer is plain SGD.",
        avoid_when="Traffic counts: each step sends the whole model.",
        against=(
            Finding(
                "251 virtual seconds to the accuracy that a server which does not wait reached in 155 to 173 "
                "(digits, one of 4 workers slow, 3 seeds, not tuned).",
                "ours, benchmarks/LOG.md",
            ),
        ),
    ),
    "local-sgd": Advice(
        use_when="Workers are trusted and alike, and a method without settings is wanted.",
        avoid_when="A worker may be bad, or n is in the hundreds.",
        against=(
            _BAD_WORKER,
            Finding(
                "Rarer averaging costs while far from trained: CIFAR-10 after 256 steps, accuracy 0.39 at n = "
                "64, 0.48 at its best n.",
                "ours, benchmarks/LOG.md",
            ),
        ),
    ),
    "median": Advice(
        use_when="A minority of workers may be bad, there is no probe, and workers are few.",
        avoid_when="Shards differ, or there are many workers: each sends and holds W - 1 vectors.",
        against=(
            Finding(
                "Each worker sees three classes: test loss 0.836 on MNIST, local SGD 0.276 (n = 16, one seed).",
                "ours, docs/choosing.md",
            ),
        ),
    ),
    "mt-dao": Advice(
        use_when="Rounds are rare and the run has thousands of steps.",
        avoid_when="The run is short: its momentum is then a mean of all gradients so far.",
        against=(
            Finding(
                "The weights of the momentum and the gradient are our choice: the paper's could not be read.",
                "by construction; no measurement",
            ),
            NOT_MEASURED,
        ),
    ),
    "muloco": Advice(
        use_when="Transformers, rounds of tens of steps, workers that are trusted.",
        avoid_when="A worker may be bad, or the model has few hidden matrices.",
        against=(
            Finding("On text most of its lead was Muon's own.", "ours, benchmarks/results/untuned.json"),
            _AFTER_FINE_TUNING,
        ),
    ),
    "noloco": Advice(
        use_when="There is no all-reduce, and any two workers can talk.",
        avoid_when="An all-reduce works, or some pairs cannot talk.",
        against=(_NO_GAIN, _NO_MEAN),
    ),
    "osp": Advice(
        use_when="Gradients must be averaged at each step, with SGD, and the network takes half of the time.",
        avoid_when="DDP overlaps well, the optimizer is Adam, or the learning rate is near its limit.",
        against=(
            Finding("It bears half of the learning rate of synchronous training.", "ours, docs/methods/osp.md"),
            Finding(
                "Where DDP overlaps perfectly it is slower: 0.79 to 1.15 s a step, DDP 0.60.",
                "ours, benchmarks/LOG.md",
            ),
        ),
    ),
    "papa": Advice(
        use_when="A population of different models is wanted, whose mean is good at the end.",
        avoid_when="One model is to be trained as fast as can be.",
        against=(
            Finding(
                "Test loss 0.054 to 0.042 of averaging at the same traffic (MNIST, n = 16, tuned, one seed).",
                "ours, benchmarks/results/evidence-mnist.json",
            ),
        ),
    ),
    "pd-asgd": Advice(
        use_when="One machine, many cores, shared memory.",
        avoid_when="Workers are on different machines, or threads share one Python interpreter lock.",
        against=(
            Finding(
                "Threads of one Python process gain little from two cores; its speed is that of the virtual "
                "clock.",
                "ours, docs/asynchronous.md",
            ),
        ),
    ),
    "pso-ps": Advice(
        use_when="The method that this project started from is to be reproduced.",
        avoid_when="Accuracy counts.",
        against=(
            Finding(
                "Not better than training without any communication: test loss 0.071 to 0.074, averaging 0.040 "
                "(MNIST, n = 16, 3 seeds).",
                "ours, benchmarks/LOG.md",
            ),
            Finding(
                "CIFAR-10, MLP: 0.405 to 0.415, no communication 0.422, averaging 0.57.",
                "an independent re-implementation",
            ),
        ),
    ),
    "quorum": Advice(
        use_when="Some workers are slow now and then, and rounds shall not wait for them.",
        avoid_when="The same workers are always slow and have data of their own: they count less.",
        against=(
            Finding(
                "With a quorum of two of four the minimum is at 1.139 in place of 1.5 on quadratics; a grace of"
                " 1.5 brings it to 1.417.",
                "ours, docs/asynchronous.md",
            ),
            _STALE_NESTEROV,
        ),
    ),
    "slowmo": Advice(
        use_when="The learning rate has a schedule, and the momentum shall shrink with it.",
        avoid_when="The inner optimizer is not told its rate to the Synchronizer, or a worker may be bad.",
        against=(_NO_GUARD,),
    ),
    "snoo": Advice(
        use_when="One worker trains long, and two vectors more fit into its memory.",
        avoid_when="The run has few rounds.",
        against=(_SHORT_RUNS, _ALONE),
    ),
    "sparseloco": Advice(
        use_when="Few workers, and a link for one bit in a hundred.",
        avoid_when="There are many workers, each of which gets every packet: from 40 on int4 sends less.",
        against=(
            Finding(
                "Clipping ruins training where shards differ: of whole steps, test loss 32, not 0.4 to 0.65.",
                "ours, docs/methods/sparseloco.md",
            ),
            Finding(
                "Every rate tuned: at n = 64, ten rounds, behind averaging on text, at n = 16 not told from it.",
                "ours, docs/results.md, few seeds",
            ),
            _AFTER_FINE_TUNING,
            _SHORT_RUNS,
        ),
    ),
    "sparta": Advice(
        use_when="Up to 16 workers on a link that is always there but thin, and steps are long.",
        avoid_when="Latency is high: each step waits for a message; or there are more than 16 workers.",
        against=(_WEAK, _EACH_STEP),
    ),
    "sparta-diloco": Advice(
        use_when="DiLoCo's rounds must be so rare that the workers drift apart, and a thin link is always there.",
        avoid_when="Latency is high: each step waits for a message; or there are more than 16 workers.",
        against=(_WEAK, _EACH_STEP, _SHORT_RUNS),
    ),
    "ssfn": Advice(
        use_when="Examples may not move, tables are small, and training without gradients is enough.",
        avoid_when="The task needs convolutions or attention.",
        against=(
            Finding(
                "By ADMM it sends more than by Gram matrices in nearly every case: 24 MB to 0.15 MB on digits.",
                "ours, docs/layerwise.md",
            ),
        ),
    ),
    "swarm": Advice(
        use_when="The default; with a probe wherever a worker may be bad.",
        avoid_when="Workers may lie about themselves, or a probe batch costs more than it protects.",
        against=(
            Finding(
                "All well and the rate too low: test loss 0.091, DiLoCo 0.083 (MNIST, n = 16); with three "
                "classes a worker 0.221 and 0.168.",
                "ours, docs/choosing.md",
            ),
            Finding("A probe of 128 examples took 12 % of 150 steps of a CNN.", "ours, docs/choosing.md"),
        ),
    ),
    "synchronous": Advice(
        use_when="The network costs nothing, or a reference is needed.",
        avoid_when="A gradient takes longer to send than to compute.",
        against=(
            Finding(
                "15.7 times as long as on an infinitely fast network at 100 Mbit/s, DiLoCo at n = 64 1.42 times.",
                "ours, benchmarks/LOG.md",
            ),
        ),
    ),
    "trimmed-mean": Advice(
        use_when="A known number of workers may be bad, there is no probe, and workers are few.",
        avoid_when="Shards differ, or there are many workers: each sends and holds W - 1 vectors.",
        against=(
            Finding(
                "With 3 or 4 workers the default is the median, with its loss on class shards.",
                "ours, docs/choosing.md",
            ),
        ),
    ),
}
