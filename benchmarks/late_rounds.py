"""Rounds that land late: what eager updates and a correction of the delay bring, against rounds that land at once.

    python benchmarks/late_rounds.py --seeds 5

Digits, 4 workers in one process, DiLoCo at n = 16 that lands 16 steps late. "plain": the worker goes on from its
own weights; "eager": `Options(eager=True)`; "taylor:C": plain, and what lands is corrected by a diagonal of
squares, as CoCoDC does in principle (formula ours): x -= s C g^2 / mean(g^2) (x - x0), g the round's mean step and
x0 where it started. Test loss of the final model; each row against "plain" of the same seed, at the best of the
rates by the mean. One core, minutes.
"""

import argparse
import functools
import math
import statistics
from collections.abc import Callable

import torch
from torch import nn

from swarmstep import Comm, DiLoCo, Every, Options, Synchronizer, simulate
from swarmstep.errors import NotFinite
from swarmstep.runtime.flat import Flat
from swarmstep.workloads import digits

torch.set_num_threads(1)
WORKERS, N, STEPS, BATCH = 4, 16, 320, 16
METHODS = ("at once", "plain", "eager", "taylor:0.1", "taylor:1")
OUTER = {"0": (1.0, 0.0), "0.6": (0.7, 0.6)}
T = {2: 12.7, 3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 8: 2.36, 10: 2.26}  # Student, 95 %, by number of seeds
WORK = digits.load()


def shards(kind: str, targets: torch.Tensor) -> list[torch.Tensor]:
    """Return each worker's examples: every fourth, or those of two or three classes."""
    if kind == "alike":
        return [torch.arange(rank, len(targets), WORKERS) for rank in range(WORKERS)]
    return [(targets % WORKERS == rank).nonzero().view(-1) for rank in range(WORKERS)]


def train(method: str, outer: tuple[float, float], kind: str, rate: float, seed: int, comm: Comm) -> float:
    torch.manual_seed(seed)
    model = next(iter(WORK.models.values()))()
    inputs, targets = WORK.prepare(WORK.train.inputs), WORK.train.targets
    own = shards(kind, targets)[comm.rank]
    draw = torch.Generator().manual_seed(1000 * seed + comm.rank)
    options = Options(seed=seed, delay=0 if method == "at once" else N, eager=method == "eager")
    sync = Synchronizer(model, DiLoCo(*outer, when=Every(N)), comm, options)
    optimizer, flat = torch.optim.SGD(model.parameters(), rate), Flat(model)
    anchor, started = flat.read(), flat.read()
    name, _, size = method.partition(":")
    for step in range(1, STEPS + 1):
        rows = own[torch.randint(len(own), (BATCH,), generator=draw)]
        loss = nn.functional.cross_entropy(model(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        before = flat.read()
        if sync.step(loss) and name == "taylor":
            moved = sync.states[0].anchor - anchor
            anchor = sync.states[0].anchor.clone()
            share = (float(size) * moved**2 / (moved**2).mean()).clamp(max=1.0)
            flat.write(flat.read() - outer[0] * share * (before - started))
        if step % N == 0:
            started = flat.read()
    sync.finish()
    with torch.no_grad():
        model.eval()
        loss = nn.functional.cross_entropy(model(WORK.prepare(WORK.test.inputs)), WORK.test.targets)
    return min(float(loss), 10.0) if math.isfinite(float(loss)) else 10.0


def loss_of(run: Callable[[Comm], float]) -> float:
    """Return the loss of a run, 10 where it diverges."""
    try:
        return simulate(run, WORKERS)[0]
    except NotFinite:
        return 10.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--shards", nargs="+", default=["alike", "classes"])
    args = parser.parse_args()
    print("| shards | outer momentum | method | rate | test loss | minus plain, 95 % |")
    print("|---" * 6 + "|")
    for kind in args.shards:
        for momentum, outer in OUTER.items():
            best: dict[str, tuple[float, list[float]]] = {}
            for method in METHODS:
                for rate in args.rates:
                    found = [
                        loss_of(functools.partial(train, method, outer, kind, rate, s)) for s in range(args.seeds)
                    ]
                    if method not in best or statistics.mean(found) < statistics.mean(best[method][1]):
                        best[method] = rate, found
            for method, (rate, found) in best.items():
                apart = [a - b for a, b in zip(found, best["plain"][1], strict=True)]
                half = (
                    T[len(apart)] * statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
                )
                print(
                    f"| {kind} | {momentum} | {method} | {rate:g} | {statistics.mean(found):.4f} | "
                    f"{statistics.mean(apart):+.4f} ± {half:.4f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
