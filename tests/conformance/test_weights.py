"""The workers' weights: a method counts them, or its card says that it does not."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import VARIANTS
from rounds import game, play, weighted

every_variant = pytest.mark.parametrize("variant", VARIANTS)
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
