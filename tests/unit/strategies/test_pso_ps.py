"""PSO-PS against its equation in NumPy, its limit cases, and what it sends."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import Trainer, same
from rounds import Array, Game, game, play
from swarmstep import PSOPS, Comm, Every, Independent, Strategy, simulate
from swarmstep.errors import UsageError
from swarmstep.seeding import generator, mix

SEED = 5


@dataclasses.dataclass
class Particle:
    """The oracle's particle: position, velocity, and its best."""

    x: Array
    v: Array
    best: Array
    best_loss: float = math.inf


def draws(options: PSOPS, r: int, rank: int, sizes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return r1, r2 as vectors, from the documented generator: one for each round and rank."""
    count = {"none": 0, "vector": 1, "tensor": len(sizes), "weight": sum(sizes)}[options.random]
    if not count:
        return np.ones(sum(sizes)), np.ones(sum(sizes))
    source = generator(mix(SEED, r + 1, rank, "pso"))
    pair = torch.rand((2, count), generator=source, dtype=torch.float64).numpy()
    lengths = {"vector": [sum(sizes)], "tensor": list(sizes), "weight": [1] * sum(sizes)}[options.random]
    return np.repeat(pair[0], lengths), np.repeat(pair[1], lengths)


def fitness(options: PSOPS, played: Game, r: int, i: int, x: Array) -> float:
    if played.absent(r, i):
        return math.inf
    return float((x**2).mean()) if options.fitness == "probe" else float(played.losses[r, i])


def fade(remembered: list[float], losses: list[float]) -> float:
    """Return how far the lowest of the losses that are remembered is below the lower median of the new ones."""
    there = sorted(f for f in losses if math.isfinite(f))
    return max(0.0, there[(len(there) - 1) // 2] - min(remembered)) if there else 0.0


def oracle(options: PSOPS, played: Game) -> tuple[Array, Array, list[int], list[float]]:
    """Return positions after each round [R, W, P], the leader at the end, all owners, and the best losses."""
    size = len(played.start)
    swarm = [Particle(played.start.copy(), np.zeros(size), played.start.copy()) for _ in range(played.workers)]
    positions, owners, leader = [], [], played.start
    w, chi = options.inertia, 1.0
    if options.constriction:
        phi = options.cognitive + options.social
        w, chi = 1.0, 2 / abs(2 - phi - math.sqrt(phi**2 - 4 * phi))
    for r in range(len(played.drift)):
        for i, p in enumerate(swarm):
            p.x = p.x + played.drift[r, i] * (not played.absent(r, i))
        losses = [fitness(options, played, r, i, p.x) for i, p in enumerate(swarm)]
        rise = options.best_decay * fade([p.best_loss for p in swarm], losses)
        for p, f in zip(swarm, losses, strict=True):
            p.best_loss += rise
            if f < p.best_loss:
                p.best_loss, p.best = f, p.x
        scores = losses if options.best == "round" else [p.best_loss for p in swarm]
        owner = scores.index(min(scores))  # the lowest rank among equals
        leader = swarm[owner].x if options.best == "round" else swarm[owner].best
        owners.append(owner)
        for i, p in enumerate(swarm):
            r1, r2 = draws(options, r, i, (2, size - 2))
            pull = options.cognitive * r1 * (p.best - p.x) + options.social * r2 * (leader - p.x)
            p.v = chi * (w * p.v + pull)
            p.v = p.v if options.clamp is None else np.minimum(np.maximum(p.v, -options.clamp), options.clamp)
        for p in swarm:
            p.x = p.x + p.v
        positions.append(np.stack([p.x for p in swarm]))
    return np.stack(positions), leader, owners, [p.best_loss for p in swarm]


def check(options: PSOPS, played: Game) -> None:
    found = play(options, played, seed=SEED)
    positions, leader, owners, losses = oracle(options, played)
    np.testing.assert_allclose(found.weights, positions, rtol=1e-9, atol=1e-11)
    expected = positions[-1].mean(0) if options.outcome == "mean" else leader
    for result, state in zip(found.results, found.states, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-11)
        assert state["owner"] == owners[-1]
        np.testing.assert_allclose(state["best_losses"], losses, rtol=1e-9)


NAMED: dict[str, dict[str, Any]] = {
    "default": {},
    "historical": {"best": "historical"},
    "vector": {"random": "vector"},
    "weight": {"random": "weight"},
    "none": {"random": "none"},
    "decay": {"best": "historical", "best_decay": 0.3},
    "clamp": {"clamp": 0.2, "social": 2.0},
    "constriction": {"constriction": True, "cognitive": 2.05, "social": 2.05},
    "probe": {"fitness": "probe", "best": "historical"},
    "mean": {"outcome": "mean"},
    "inertia": {"inertia": 1.0, "cognitive": 0.0, "social": 0.0},
}


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("name", NAMED)
def test_rounds_follow_the_equation(name: str, workers: int) -> None:
    check(PSOPS(**NAMED[name]), game(workers, rounds=12))


options = st.builds(
    PSOPS,
    inertia=st.floats(0, 1),
    cognitive=st.floats(0, 2),
    social=st.floats(0, 2),
    best=st.sampled_from(["round", "historical"]),
    random=st.sampled_from(["tensor", "vector", "weight", "none"]),
    fitness=st.sampled_from(["training", "probe"]),
    best_decay=st.sampled_from([0.0, 0.1, 1.0]),
    clamp=st.sampled_from([None, 0.05, 1.0]),
    outcome=st.sampled_from(["best", "mean"]),
)


@given(options, st.integers(1, 4), st.integers(0, 2**16), st.dictionaries(st.integers(1, 3), st.integers(0, 5)))
def test_any_options_losses_with_ties_and_workers_that_finish(
    options: PSOPS, workers: int, seed: int, finished: dict[int, int]
) -> None:
    ties = np.random.default_rng(seed).choice([0.5, 1.0, 2.0], size=(6, workers))
    check(options, game(workers, rounds=6, seed=seed, losses=ties, finished=finished))


@pytest.mark.parametrize("fitness", ["training", "probe"])
@pytest.mark.parametrize("best", ["round", "historical"])
def test_a_worker_without_any_data_never_leads(best: str, fitness: str) -> None:
    check(PSOPS(best=best, fitness=fitness), game(3, finished={0: 0, 2: 3}))


def test_ties_go_to_the_lowest_rank() -> None:
    for best in ("round", "historical"):
        played = game(3, rounds=2, losses=np.array([[2.0, 1.0, 1.0], [1.0, 1.0, 1.0]]))
        found = play(PSOPS(best=best), played, seed=SEED)
        assert found.states[0]["owner"] == 0
        first = play(PSOPS(best=best), played._replace(drift=played.drift[:1]), seed=SEED)
        assert first.states[2]["owner"] == 1


def trace(comm: Comm, strategy: Strategy, steps: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Return the model before and after each step's round, and the reports."""
    trainer = Trainer(strategy, comm)
    before, after, reports = [], [], []
    for _ in range(steps):
        loss = trainer.local_step()
        before.append({name: t.clone() for name, t in trainer.model.state_dict().items()})
        reports.append(trainer.sync.step(loss))
        after.append(trainer.weights())
    trainer.sync.finish()
    after.append({name: t.clone() for name, t in trainer.model.state_dict().items()})
    return before, after, reports


def test_without_any_pull_it_is_independent_training_bitwise() -> None:
    still = PSOPS(inertia=0.0, cognitive=0.0, social=0.0, when=Every(2))
    swarm = simulate(lambda comm: trace(comm, still, 8), 3)
    alone = simulate(lambda comm: trace(comm, Independent(), 8), 3)
    for mine, theirs in zip(swarm, alone, strict=True):
        assert same(mine[1][:-1], theirs[1][:-1])


def test_with_social_pull_alone_it_copies_the_leader() -> None:
    copy = PSOPS(inertia=0.0, cognitive=0.0, social=1.0, random="none", when=Every(4))
    found = simulate(lambda comm: trace(comm, copy, 8), 4)
    for step in (3, 7):
        losses = found[0][2][step].losses
        leader = found[losses.index(min(losses))][0][step]
        parameters = torch.cat([t.flatten() for n, t in leader.items() if n.endswith(("weight", "bias"))])
        for _, after, _ in found:
            torch.testing.assert_close(after[step][: len(parameters)], parameters, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("best", ["round", "historical"])
def test_the_leader_brings_its_batch_norm_statistics(best: str) -> None:
    strategy = PSOPS(best=best, when=Every(3))
    found = simulate(lambda comm: trace(comm, strategy, 12), 4)
    rounds = [(step, found[0][2][step].losses) for step in (2, 5, 8, 11)]
    rounds = rounds[-1:] if best == "round" else rounds
    _, step, owner = min((loss, step, rank) for step, losses in rounds for rank, loss in enumerate(losses))
    for _, after, _ in found:
        for name, tensor in found[owner][0][step].items():
            if tensor.is_floating_point():
                assert same(after[-1][name], tensor), name


def broadcasts(reports: list[Any], historical: bool) -> list[int]:
    """Return how often each round must broadcast: for historical, when g's owner changed or refreshed it."""
    best, owner, expected = [math.inf] * len(reports[0].losses), -1, []
    for report in reports:
        refreshed = [f < b for f, b in zip(report.losses, best, strict=True)]
        best = [min(f, b) for f, b in zip(report.losses, best, strict=True)]
        leader = best.index(min(best))
        expected.append(1 if not historical or leader != owner or refreshed[leader] else 0)
        owner = leader
    return expected


@pytest.mark.parametrize("best", ["round", "historical"])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_a_round_is_the_pairs_and_one_broadcast_if_the_leader_is_new(best: str, workers: int) -> None:
    strategy = PSOPS(best=best, when=Every(1))
    found = simulate(lambda comm: trace(comm, strategy, 16), workers)
    P = found[0][1][0].numel()
    expected = broadcasts(found[0][2], best == "historical")
    assert sum(expected) == 16 if best == "round" else 0 < sum(expected) < 16
    for r, count in enumerate(expected):
        pairs, vector = 56 * workers * (workers - 1), 4 * P * (workers - 1)
        assert sum(reports[r].bytes_sent for _, _, reports in found) == pairs + count * vector
        assert sum(reports[r].bytes_received for _, _, reports in found) == pairs + count * vector


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"inertia": 1.1}, "inertia: expected 0 to 1, found 1.1"),
        ({"inertia": -0.1}, "inertia"),
        ({"inertia": math.nan}, "inertia"),
        ({"cognitive": 4.5}, "cognitive: expected 0 to 4"),
        ({"social": -1.0}, "social: expected 0 to 4"),
        ({"best": "ever"}, "best: expected one of round, historical, found 'ever'"),
        ({"random": "no"}, "random: expected one of tensor, vector, weight, none"),
        ({"fitness": "accuracy"}, "fitness: expected one of training, probe"),
        ({"best_decay": 2.0}, "best_decay: expected 0 to 1"),
        ({"outcome": "worst"}, "outcome: expected one of best, mean"),
        ({"clamp": 0.0}, "clamp: expected a number > 0, found 0.0"),
        ({"clamp": math.nan}, "clamp"),
        ({"constriction": True}, "constriction: expected cognitive + social > 4, found 0.58"),
    ],
)
def test_options_out_of_range_are_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        PSOPS(**wrong)
    assert str(caught.value).startswith(said)
