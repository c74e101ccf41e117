"""The workers' weights: a method counts them, or its card says that it does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from helpers import UNEVEN, VARIANTS, WeightedTrainer, same, weighted_run
from rounds import game, play, weighted
from swarmstep import STRATEGIES, Comm, DiLoCo, Every, Warmup, simulate

every_variant = pytest.mark.parametrize("variant", VARIANTS)
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
GAME = game(4, finished={1: 4})


@every_variant
def test_equal_weights_change_no_bit_whatever_their_unit(variant: str) -> None:
    ones, tokens = (play(VARIANTS[variant], g) for g in (GAME, GAME._replace(weights=7.0 * GAME.weights)))
    np.testing.assert_array_equal(ones.weights, tokens.weights)
    np.testing.assert_array_equal(ones.results, tokens.results)


@every_variant
def test_a_card_says_whether_weights_count(variant: str) -> None:
    strategy = VARIANTS[variant]
    equal, unequal = play(strategy, GAME), play(strategy, weighted(GAME))
    assert (not np.array_equal(equal.weights, unequal.weights)) == strategy.card.weighted


@every_strategy
def test_unequal_steps_and_weights_resume_bitwise(name: str) -> None:
    strategy = dataclasses.replace(STRATEGIES[name](), when=Every(UNEVEN))
    resumed, whole = (simulate(lambda comm, r=r: weighted_run(comm, strategy, r), 3) for r in (True, False))
    assert same(resumed, whole)
    assert [len(weights) for weights, _ in whole] == [n * 3 + 2 for n in UNEVEN]


def test_a_warm_up_of_equal_steps_and_then_unequal_ones() -> None:
    def train(comm: Comm) -> list[int]:
        trainer = WeightedTrainer(Warmup(DiLoCo(when=Every(UNEVEN)), 3), comm)
        rounds = [trainer.done for _ in range(2 + 3 * UNEVEN[comm.rank]) if trainer.step()]
        trainer.sync.finish()
        return rounds

    assert simulate(train, 3) == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6, 8], [1, 2, 3, 6, 9]]
