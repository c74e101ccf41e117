"""Rounds of a strategy on vectors of our own making, without a model: what the oracles are compared with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from swarmstep import Comm, Metered, Strategy, simulate
from swarmstep.signal import Layout, Roll, Signal

Array = NDArray[np.float64]
Probe = Callable[[torch.Tensor], torch.Tensor]


class Played(NamedTuple):
    """Weights after each round [R, W, P], the model at the end [W, P], the state, bytes sent a round [R, W]."""

    weights: Array
    results: Array
    states: list[dict[str, Array]]
    sent: Array


class Game(NamedTuple):
    """W workers that drift apart between R rounds: x_i gets drift[r, i] before round r.

    `losses` [R, W] are what the roll call says; `rates` [R] the learning rates; worker i has finished from
    round `finished[i]` on; the last `buffers` elements of x are buffers. Vectors have two tensors. `weights`
    [R, W] are the workers' weights in each round, in any unit.
    """

    start: Array
    drift: Array
    losses: Array
    rates: list[float | None]
    finished: dict[int, int]
    buffers: int
    weights: Array

    @property
    def workers(self) -> int:
        return self.drift.shape[1]

    def absent(self, r: int, i: int) -> bool:
        return r >= self.finished.get(i, len(self.drift))

    def mean(self, r: int, x: Array, among: Any = slice(None)) -> Array:
        """Return the weighted mean of those `among` all workers that take part in round r; x is [W, ...]."""
        here = np.array([not self.absent(r, i) for i in range(self.workers)])
        weights = np.zeros(self.workers)
        weights[among] = np.where(here, self.weights[r], 0.0)[among]
        return np.average(x, axis=0, weights=weights)


def game(workers: int, rounds: int = 6, size: int = 7, seed: int = 0, **fields: object) -> Game:
    rng = np.random.default_rng(seed)
    made = Game(
        start=rng.normal(size=size),
        drift=rng.normal(size=(rounds, workers, size)),
        losses=rng.uniform(0.5, 2.0, size=(rounds, workers)),
        rates=[0.1] * rounds,
        finished={},
        buffers=0,
        weights=np.ones((rounds, workers)),
    )
    return made._replace(**fields)


def weighted(played: Game) -> Game:
    """The same with other weights: each worker has seen 1 to 20 examples."""
    rng = np.random.default_rng(1)
    return played._replace(weights=rng.integers(1, 21, played.weights.shape).astype(float))


def mean_square(v: torch.Tensor) -> torch.Tensor:
    """The probe: one number."""
    return (v**2).double().mean().reshape(1)


def squares(v: torch.Tensor) -> torch.Tensor:
    """A probe of the same mean that says what each example has lost."""
    return (v**2).double()


def no_gradient() -> torch.Tensor:
    raise AssertionError("no strategy asks for the gradient")


def play(strategy: Strategy, game: Game, seed: int = 0, double: bool = True, probe: Probe = mean_square) -> Played:
    """Run the rounds; each checks that `exchange` changes nothing."""
    dtype = torch.float64 if double else torch.float32

    def train(world: Comm) -> tuple[list[Array], Array, dict[str, Array], list[int]]:
        comm = Metered(world)
        x = torch.tensor(game.start, dtype=dtype)
        size = len(x)
        layout = Layout(("a", "b"), (2, size - 2), size - game.buffers)
        state = strategy.init(x, layout, comm)
        weights, sent = [], []
        for r, drift in enumerate(game.drift):
            gone = [game.absent(r, i) for i in range(comm.size)]
            if not gone[comm.rank]:
                x += torch.tensor(drift[comm.rank], dtype=dtype)
            losses = torch.tensor(np.where(gone, np.inf, game.losses[r]))
            steps = torch.tensor([0.0 if g else r + 1.0 for g in gone], dtype=torch.float64)
            reports = world.gather(torch.tensor(strategy.report(x, state, layout), dtype=torch.float64))
            seconds = torch.zeros(comm.size, 3, dtype=torch.float64)
            roll = Roll(steps, steps, losses, torch.tensor(game.weights[r]), seconds, reports)
            rate = None if gone[comm.rank] else game.rates[r]
            signal = Signal(r + 1, seed, rate, lambda: 0.0, no_gradient, probe, layout)
            before = [x.clone(), *(t.clone() for t in state)]
            traffic = comm.traffic.sent
            message = strategy.exchange(x, state, signal, roll, comm)
            assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, [x, *state], strict=True))
            sent.append(comm.traffic.sent - traffic)
            strategy.apply(x, state, message, layout)
            if strategy.follows_up:  # it ends before the next round
                state = strategy.follow_up(state, layout, comm)
            weights.append(x.double().numpy().copy())
        result = strategy.result(x, state, comm).double().numpy().copy()
        return weights, result, {name: t.double().numpy().copy() for name, t in state._asdict().items()}, sent

    weights, results, states, sent = zip(*simulate(train, game.workers), strict=True)
    return Played(np.stack(weights, 1), np.stack(results), list(states), np.array(sent).T)
