"""Workers that take different numbers of steps between rounds: landing, finishing, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from helpers import same
from swarmstep import Comm, Every, LocalSGD, Options, Round, Synchronizer, Warmup, simulate
from swarmstep.errors import CheckpointError, UsageError
from weights import ROUNDS, STEPS, Worker, train
from wrapped import Wrapped

STRATEGY = LocalSGD(when=Every(STEPS))


@pytest.mark.parametrize(
    "options",
    [
        {"delay": 1},
        {"delay": 6},  # longer than the first worker's round: that lands when its next one starts
        {"mix": 0.3},
    ],
)
def test_resumed_in_the_middle_of_a_round_is_as_uninterrupted_bitwise(options: dict[str, Any]) -> None:
    whole, resumed = (simulate(lambda comm, r=r: train(comm, ROUNDS, r, None, options), 3) for r in (False, True))
    for first, second in zip(whole, resumed, strict=True):
        assert all((first[name] == second[name]) is True for name in ("steps", "weights"))
        assert (first["x"] == second["x"]).all()


@pytest.mark.parametrize("delay", [1, 6])
def test_with_a_delay_each_worker_lands_by_its_own_steps(delay: int) -> None:
    def landings(comm: Comm) -> list[int]:
        sync = Synchronizer(nn.Linear(1, 1), STRATEGY, comm, Options(delay=delay))
        return [step for step in range(1, 2 * STEPS[comm.rank] + 1) if sync.step(1.0)]

    assert simulate(landings, 3) == [[min(n + delay, 2 * n)] for n in STEPS]


def test_a_worker_may_finish_while_others_train_on() -> None:
    def rounds(comm: Comm) -> list[Any]:
        worker = Worker(comm)
        found = [worker.step() for _ in range((4, 24, 48)[comm.rank])]
        worker.sync.finish()
        return [(round.number, round.participants, round.step) for round in found if round]

    others = [(1, 3, 16), (2, 2, 32), (3, 2, 48)]
    assert simulate(rounds, 3) == [others[:1], others, others]


def test_all_see_the_same_of_all() -> None:
    def rounds(comm: Comm) -> list[Round]:
        worker = Worker(comm)
        return [round for _ in range(2 * STEPS[comm.rank]) if (round := worker.step())]

    found = simulate(rounds, 3)
    for number in range(2):
        names = ("step", "losses", "weights", "compute_seconds", "wait_seconds", "send_seconds")
        seen = [[getattr(reports[number], name) for name in names] for reports in found]
        assert seen[0] == seen[1] == seen[2]
    assert found[0][0].wait_seconds == found[0][0].send_seconds == (0.0, 0.0, 0.0)  # there was no round before


def test_a_checkpoint_of_other_numbers_is_refused() -> None:
    def load(comm: Comm) -> None:
        saved = Worker(comm).save()
        Worker(comm, LocalSGD(when=Every((4, 8, 15)))).load(saved)

    with pytest.raises(CheckpointError, match=r"when: expected Every\(n=\(4, 8, 15\)\) \(this run\)"):
        simulate(load, 3)


class Elastic(Wrapped):
    """A group that says that it is elastic."""

    @property
    def elastic(self) -> bool:
        return True


@pytest.mark.parametrize("strategy", [STRATEGY, Warmup(STRATEGY, 3)])
def test_an_elastic_group_is_refused_by_name(strategy: Any) -> None:
    with pytest.raises(UsageError, match=r"\(4, 8, 16\).*in an elastic group all workers take the same number"):
        simulate(lambda comm: Synchronizer(nn.Linear(1, 1), strategy, Elastic(comm)), 1)


def test_a_newcomer_counts_as_much_as_the_worker_whose_state_it_takes() -> None:
    """A group of two goes on with three in the middle of a round; all take as many steps from there."""

    def two(comm: Comm) -> dict[str, Any]:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=Every(4)), comm)
        for _ in range(2):
            sync.step(1.0, weight=3.0)
        return sync.state_dict()

    def three(comm: Comm) -> Any:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=Every(4)), comm)
        sync.load_state_dict(saved[min(comm.rank, 1)], (0, 1, None))
        return [event.weights for _ in range(2) if isinstance(event := sync.step(1.0), Round)]

    saved = simulate(two, 2)
    assert same(simulate(three, 3), [[(8.0, 8.0, 8.0)]] * 3)


def test_a_weight_out_of_range_is_refused_and_the_step_not_counted() -> None:
    sync = simulate(lambda comm: Synchronizer(nn.Linear(1, 1), LocalSGD(), comm), 1)[0]
    with pytest.raises(UsageError, match="found -1"):
        sync.step(1.0, weight=-1.0)
    assert sync.steps == 0
