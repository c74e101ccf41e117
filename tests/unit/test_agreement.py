"""Before step 1 the ranks compare notes: each kind of difference is named with rank and field."""

from __future__ import annotations

import pytest

from agreement_jobs import CASES, Kinds, build, start
from helpers import network, options, same
from swarmstep import PSOPS, Comm, LocalSGD, Options, Synchronizer, simulate
from swarmstep.errors import Disagreement, NotFinite, UsageError
from swarmstep.runtime.startup_checks import agree


@pytest.mark.parametrize("case", CASES)
def test_a_difference_names_rank_and_field(case: str) -> None:
    odd, said = CASES[case]
    with pytest.raises(Disagreement) as caught:
        simulate(lambda comm: build(comm, odd), 3)
    assert f"the ranks disagree on {said}" in str(caught.value)


def test_the_lowest_odd_rank_is_named() -> None:
    def train(comm: Comm) -> None:
        agree({"a": "same", "b": str(comm.rank // 2)}, comm)

    simulate(train, 2)
    with pytest.raises(Disagreement, match="disagree on b: rank 0 has 0, rank 2 has 1"):
        simulate(train, 5)


def test_long_and_strange_values_are_compared_as_they_are() -> None:
    def train(comm: Comm, odd: str) -> None:
        agree({"name": odd if comm.rank else "ü\x00" * 5000}, comm)

    simulate(lambda comm: train(comm, "ü\x00" * 5000), 3)
    with pytest.raises(Disagreement, match="disagree on name"):
        simulate(lambda comm: train(comm, "ü\x00" * 4999 + "üx"), 3)


def loss_of(comm: Comm, losses: list[float]) -> None:
    Synchronizer(network(), LocalSGD(), comm, Options(probe=lambda module, step: losses[comm.rank]))


def test_the_probes_loss_is_compared_to_a_thousandth() -> None:
    simulate(lambda comm: loss_of(comm, [2.0, 2.0, 2.001]), 3)
    with pytest.raises(Disagreement, match=r"loss: rank 0 has 2, rank 2 has 2\.01 with equal weights"):
        simulate(lambda comm: loss_of(comm, [2.0, 2.0, 2.01]), 3)


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("loss", ["nan", "inf"])
def test_a_probe_without_a_number_is_named(loss: str, rank: int) -> None:
    losses = [float(loss) if r == rank else 2.0 for r in range(2)]
    with pytest.raises(NotFinite, match=f"the probe's loss is {loss} on rank {rank} before step 1"):
        simulate(lambda comm: loss_of(comm, losses), 2)


def test_all_start_from_everything_that_rank_0_holds() -> None:
    first = Kinds(1)
    for found in simulate(start, 3):
        assert same(found, dict(first.state_dict()))


def test_policies_that_a_strategy_does_not_allow_are_named() -> None:
    def train(comm: Comm) -> None:
        Synchronizer(network(), PSOPS(), comm, options(buffers="mean"))

    with pytest.raises(UsageError, match="buffers with PSOPS: expected one of local, first, found 'mean'"):
        simulate(train, 2)
