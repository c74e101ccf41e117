"""Independent training: nobody hears of anybody."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from helpers import LR, Trainer, batch, network, same
from rounds import game, play
from swarmstep import Comm, Every, Independent, Never, simulate
from swarmstep.runtime.flat import Flat
from swarmstep.seeding import mix


def test_a_round_changes_nothing() -> None:
    played = game(3, rounds=4)
    found = play(Independent(when=Every(1)), played)
    expected = played.start + played.drift.cumsum(0)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-12)
    np.testing.assert_array_equal(found.results, found.weights[-1])
    assert not found.sent.any()


def synchronized(comm: Comm, rounds: bool) -> tuple[list[Tensor], int]:
    trainer = Trainer(dataclasses.replace(Independent(), when=Every(2) if rounds else Never()), comm)
    started = trainer.sync.bytes_sent
    weights = []
    for _ in range(5):
        trainer.step()
        weights.append(trainer.weights())
    sent = trainer.sync.bytes_sent - started
    trainer.sync.finish()
    assert same(trainer.weights(), weights[-1])
    return weights, sent


def plain(rank: int) -> list[Tensor]:
    """Train as `Trainer` does, without any Synchronizer."""
    model = network(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    weights = []
    for step in range(1, 6):
        torch.manual_seed(mix(0, step, rank))
        inputs, labels = batch(0, step, rank)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        weights.append(Flat(model).read())
    return weights


def test_it_is_a_plain_loop_bitwise_with_rounds_and_without() -> None:
    expected = [plain(rank) for rank in range(3)]
    for rounds, sent in ((True, 2 * 2 * 56), (False, 0)):
        found = simulate(lambda comm, r=rounds: synchronized(comm, r), 3)
        assert same([weights for weights, _ in found], expected)
        assert [s for _, s in found] == [sent] * 3  # the roll call, in each of two rounds, to two others
