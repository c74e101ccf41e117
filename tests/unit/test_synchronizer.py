"""The Synchronizer: windows, reports, ends of data, and probes."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import TIMINGS, Trainer, Vote, before_rounds, network, options, probe, same, timed
from swarmstep import PSOPS, Comm, Every, Independent, LocalSGD, Never, Options, Synchronizer, simulate
from swarmstep.errors import CollectiveMismatch, UsageError
from swarmstep.runtime.flat import Flat
from swarmstep.signal import Layout, Signal
from swarmstep.when import NoState, When


def test_a_rounds_losses_are_the_means_since_the_round_before() -> None:
    def train(comm: Comm) -> list[Any]:
        sync = Synchronizer(network(), LocalSGD(when=Every(3)), comm)
        reports = [sync.step(10.0 * comm.rank + n) for n in range(1, 8)]
        reports.append(sync.step(torch.tensor(5.0, dtype=torch.float64, requires_grad=True)))
        reports.append(sync.step(torch.tensor([7.5])))
        return reports

    for reports in simulate(train, 3):
        assert [bool(report) for report in reports] == [False, False, True] * 3
        assert reports[2].losses == (2.0, 12.0, 22.0)
        assert reports[5].losses == (5.0, 15.0, 25.0)
        assert reports[8].losses == ((7 + 5 + 7.5) / 3, (17 + 5 + 7.5) / 3, (27 + 5 + 7.5) / 3)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_no_number_makes_nobody_the_leader(bad: float) -> None:
    def train(comm: Comm) -> Any:
        sync = Synchronizer(network(), PSOPS(when=Every(1)), comm)
        report = sync.step(bad if comm.rank == 0 else 3.0)
        return report.losses, int(sync.state_dict()["fragments"][0]["state"]["owner"])

    assert simulate(train, 2) == [((math.inf, 3.0), 1)] * 2


def test_a_report_says_what_the_round_did() -> None:
    found = simulate(lambda comm: [Trainer.step(t) for t in [Trainer(LocalSGD(when=Every(2)), comm)] * 4], 3)
    P = Flat(network()).read().numel()
    for reports in found:
        assert [report and report.step for report in reports] == [None, 2, None, 4]
        assert reports[1].strategy == "LocalSGD"
        assert reports[1].participants == 3
        assert reports[1].seconds >= 0
    for side in ("bytes_sent", "bytes_received"):
        assert sum(getattr(r[1], side) for r in found) == 56 * 6 + 2 * 2 * 4 * (P + 1)


def test_a_vector_of_losses_is_refused_and_the_step_not_counted() -> None:
    sync = simulate(lambda comm: Synchronizer(network(), LocalSGD(), comm), 1)[0]
    with pytest.raises(UsageError, match=r"expected a scalar loss, found shape \[3\]"):
        sync.step(torch.zeros(3))
    assert sync.state_dict()["step"] == 0


def uneven(comm: Comm, trigger: str, steps: list[int]) -> tuple[list[Any], Tensor, Tensor]:
    trainer = Trainer(timed(LocalSGD(), trigger), comm)
    reports = [trainer.step() for _ in range(steps[comm.rank])]
    before = trainer.weights()
    trainer.sync.finish()
    return [report for report in reports if report], before, trainer.weights()


@pytest.mark.parametrize("steps", [[2, 7, 7], [7, 2, 4], [0, 3, 7], [7, 7, 7], [0, 0, 0]])
@pytest.mark.parametrize("trigger", TIMINGS)
def test_ranks_may_run_out_of_data_at_different_steps(trigger: str, steps: list[int]) -> None:
    found = simulate(lambda comm: uneven(comm, trigger, steps), 3)
    assert same(found[0][2], found[1][2])
    assert same(found[0][2], found[2][2])
    longest = found[steps.index(max(steps))][0]
    for report in longest:
        assert report.participants == sum(n >= report.step for n in steps)
        assert [math.isinf(loss) for loss in report.losses] == [n < report.step for n in steps]
    if trigger == "every-3":
        assert [report.step for report in longest] == list(range(3, max(steps) + 1, 3))


def test_a_worker_that_has_finished_takes_the_mean_of_the_others() -> None:
    def train(comm: Comm) -> Tensor:
        model = nn.Linear(1, 1, bias=False)
        sync = Synchronizer(model, LocalSGD(when=Every(2)), comm)
        for _ in range(2 if comm.rank else 1):
            with torch.no_grad():
                model.weight.fill_([100.0, 1.0, 4.0][comm.rank])
            sync.step(0.0)
        sync.finish()
        return model.weight.detach().flatten()

    assert all(same(weight, torch.tensor([2.5])) for weight in simulate(train, 3))


def test_no_steps_after_finish_and_finishing_twice_does_nothing() -> None:
    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(), comm)
        trainer.sync.finish()
        sent = trainer.sync.bytes_sent
        trainer.sync.finish()
        assert trainer.sync.bytes_sent == sent
        with pytest.raises(UsageError, match="called after finish"):
            trainer.step()

    simulate(train, 2)


def test_ranks_at_different_rounds_are_named() -> None:
    """Rank 0 goes on from a checkpoint, the others begin."""
    saved = simulate(lambda comm: trained(comm, 4), 3)[0]

    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(when=Every(2)), comm)
        if comm.rank == 0:
            trainer.load(saved)
        trainer.step()
        trainer.step()

    with pytest.raises(
        CollectiveMismatch, match=r"step 6: the ranks are at different rounds.* found 3, 1, 1 in rank"
    ):
        simulate(train, 3)


def trained(comm: Comm, steps: int) -> bytes:
    trainer = Trainer(LocalSGD(when=Every(2)), comm)
    for _ in range(steps):
        trainer.step()
    return trainer.save()


def test_one_wish_makes_all_synchronize() -> None:
    def train(comm: Comm) -> list[int]:
        sync = Synchronizer(network(), LocalSGD(when=Vote()), comm)
        losses = [1.0, 1.0, 5.0 if comm.rank == 2 else 1.0, 1.0]
        return [step for step, loss in enumerate(losses, 1) if sync.step(loss)]

    assert simulate(train, 3) == [[3]] * 3


@dataclasses.dataclass(frozen=True)
class Seen(When[NoState]):
    """Starts no round, and keeps the signals it was asked with."""

    signals: list[Signal] = dataclasses.field(default_factory=list, repr=False)

    def init(self, layout: Layout, size: int) -> NoState:
        return NoState()

    def due(self, state: NoState, signal: Signal) -> bool:
        self.signals.append(signal)
        return False


def test_the_probe_leaves_everything_alone_but_its_own_copy() -> None:
    def wild(module: nn.Module, step: int) -> Tensor:
        assert not module.training
        torch.rand(5)
        for buffer in module.buffers():
            buffer.zero_()
        with torch.enable_grad():
            inputs = torch.ones(4, 5)
            loss = module(inputs).sum()
            loss.backward()
        return loss

    def train(comm: Comm) -> None:
        model = network()
        seen = Seen()
        sync = Synchronizer(model, LocalSGD(when=seen), comm, Options(probe=wild, probe_cost=0.0))
        model(torch.randn(6, 5)).sum().backward()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        random = torch.get_rng_state()
        sync.step(1.0)
        probe = seen.signals[0].probe
        assert probe is not None
        x = Flat(model).read()
        losses = [probe(vector).item() for vector in (x, 2 * x, x)]
        assert losses[0] == losses[2] != losses[1]
        assert torch.equal(torch.get_rng_state(), random)
        assert same(dict(model.state_dict()), state)
        assert same([p.grad for p in model.parameters()], gradients)
        assert model.training

    simulate(train, 1)


def test_the_probe_measures_the_vector_it_is_given() -> None:
    def train(comm: Comm) -> None:
        model = network()
        seen = Seen()
        Synchronizer(model, LocalSGD(when=seen), comm, options()).step(1.0)
        other = network(3).eval()
        probed = seen.signals[0].probe
        assert probed is not None
        torch.testing.assert_close(probed(Flat(other).read()), probe(other, 1).double(), rtol=1e-6, atol=0.0)

    simulate(train, 1)


def test_a_probe_is_asked_for_by_name() -> None:
    def train(comm: Comm) -> None:
        Synchronizer(network(), PSOPS(fitness="probe"), comm)

    with pytest.raises(UsageError, match=r"PSOPS needs a probe: give Options\(probe=...\)"):
        simulate(train, 2)


def test_tampering_changes_what_a_round_reads_and_nothing_else() -> None:
    def train(comm: Comm, tampered: bool) -> tuple[Tensor, list[tuple[int, float]]]:
        seen: list[tuple[int, float]] = []

        def strike(x: Tensor, step: int) -> None:
            seen.append((step, float(x.sum())))
            x -= 2.0

        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        sync = Synchronizer(model, LocalSGD(when=Every(2)), comm)
        with before_rounds(strike) if tampered and comm.rank == 1 else contextlib.nullcontext():
            for _ in range(4):
                with torch.no_grad():
                    model.weight += 1.0
                sync.step(0.0)
        return model.weight.detach().flatten(), seen

    # From 1: both at 3; the liar says 1, mean 2. Then both at 4; the liar says 2, mean 3.
    for weight, seen in simulate(lambda comm: train(comm, True), 2):
        assert same(weight, torch.tensor([3.0]))
        assert seen in ([], [(2, 3.0), (4, 4.0)])
    assert same(simulate(lambda comm: train(comm, False), 2)[0][0], torch.tensor([5.0]))


def test_without_rounds_nothing_is_sent_between_start_and_end() -> None:
    def train(comm: Comm) -> int:
        trainer = Trainer(Independent(when=Never()), comm)
        before = trainer.sync.bytes_sent
        for _ in range(3):
            assert trainer.step() is None
        return trainer.sync.bytes_sent - before

    assert simulate(train, 3) == [0, 0, 0]
