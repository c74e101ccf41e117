"""One's own loop, shorter: each new call does what the longer way does, bit for bit."""

from __future__ import annotations

import gc
import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swarmstep
from helpers import Momentum, Trainer, network, options, same
from swarmstep import (
    BMUF,
    EMA,
    OSP,
    PSOPS,
    Comm,
    DiLoCo,
    Every,
    InformedSwarm,
    Int8,
    LocalSGD,
    NoLoCo,
    Options,
    Round,
    Strategy,
    Synchronizer,
    Synchronous,
    Warmup,
    simulate,
)
from swarmstep.errors import CheckpointError, CollectiveMismatch, UsageError
from swarmstep.runtime.state_transfer import tensors_of
from whole_runs import fast_ones

CASES: dict[str, tuple[Strategy, dict[str, Any]]] = {
    "plain": (LocalSGD(when=Every(3)), {}),
    "delay": (DiLoCo(when=Every(4)), {"delay": 3}),
    "delay, codec": (DiLoCo(when=Every(4)), {"delay": 3, "codec": Int8()}),
    "delay, mix, fragments": (DiLoCo(when=Every(4)), {"delay": 2, "mix": 0.5, "fragments": 2}),
    "views": (BMUF(when=Every(4)), {"delay": 3, "views": True}),
    "warm-up": (Warmup(DiLoCo(when=Every(4)), 2), {"delay": 3}),
    "swarm": (InformedSwarm(when=Every(2)), {}),
    "pairs": (NoLoCo(when=Every(3)), {"delay": 2}),
    "gradients": (Synchronous(), {}),
}


class Tied(nn.Module):
    """An embedding and a head of the same weights, with BatchNorm, a frozen layer and bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.into = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.out = nn.Linear(6, 5, bias=False)
        self.back = nn.Linear(6, 5, bias=False)
        self.back.weight = self.out.weight
        self.short = nn.Linear(5, 3).to(torch.bfloat16)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.register_buffer("calls", torch.zeros(2, dtype=torch.int64), persistent=False)
        self.register_buffer("mask", torch.ones(1).expand(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1  # another tensor each time
        hidden = self.norm(self.into(x))
        return self.frozen(self.short((self.out(hidden) + self.back(hidden)).to(torch.bfloat16)).float())


def everything(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def meddle(model: nn.Module) -> list[Tensor]:
    """Return the model's tensors, and do to it what an evaluation may do, and more."""
    found = everything(model)
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
        torch.rand(3)
    model.train()
    model(torch.randn(4, 5))
    return found


def look(comm: Comm, case: str, steps: int, looks: bool) -> list[Any]:
    """Train, and return what is left, what torch draws next, and what evaluations have shown."""
    strategy, given = CASES[case]
    trainer, rows, shown = Trainer(strategy, comm, **given), [], []
    for _ in range(steps):
        rows.append((trainer.step() is None, everything(trainer.model)))
        shown += [trainer.sync.evaluate(meddle)] if looks else []
    return [[rows, _untimed(trainer.sync.state_dict()["fragments"]), torch.rand(2)], shown]


def finished(comm: Comm, case: str, steps: int) -> list[Tensor]:
    strategy, given = CASES[case]
    trainer = Trainer(strategy, comm, **given)
    for _ in range(steps):
        trainer.step()
    trainer.sync.finish()
    return everything(trainer.model)


@pytest.mark.parametrize("case", fast_ones([*CASES][::2], CASES))
def test_evaluate_shows_what_finish_leaves_and_leaves_no_trace(case: str) -> None:
    """After each step: against a run that finishes there, and one that never evaluates."""
    plain = simulate(lambda comm: look(comm, case, 7, False)[0], 3)
    found = simulate(lambda comm: look(comm, case, 7, True), 3)
    assert same(plain, [left for left, _ in found])
    for steps in (2, 5, 7):  # with n = 4 and a delay of 3 a round is under way at 5, and lands at 7
        results = simulate(lambda comm, steps=steps: finished(comm, case, steps), 3)
        assert same(results, [shown[steps - 1] for _, shown in found])


def _untimed(value: Any) -> Any:
    """Without what a clock says."""
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in ("seconds", "calls", "roll")}
    return [_untimed(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_evaluate_gives_every_tensor_back() -> None:
    def train(comm: Comm) -> None:
        model = Tied()
        sync = Synchronizer(model, LocalSGD(when=Every(2)), comm, Options(delay=1))
        optimizer = Momentum([p for p in model.parameters() if p.requires_grad])
        for step in range(3):
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
            sync.step()
            model.zero_grad()
            model.norm.eval()
            before, calls = everything(model), model.calls
            sync.evaluate(lambda m: m.eval()(torch.randn(4, 5)))
            assert same(everything(model), before), step
            assert model.calls is calls
            assert model.training
            assert not model.norm.training
        sync.finish()
        assert same(sync.evaluate(everything), everything(model))

    simulate(train, 2)


@pytest.mark.parametrize("views", [False, True])
def test_an_evaluation_in_half_precision_gives_the_model_back(views: bool) -> None:
    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(when=Every(2)), comm, views=views)
        for _ in range(2):
            trainer.step()
        before = everything(trainer.model)
        trainer.sync.evaluate(lambda model: [*model.half().parameters()])
        assert same(everything(trainer.model), before)
        trainer.step()

    simulate(train, 2)


def test_an_evaluation_that_fails_gives_the_model_back() -> None:
    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(when=Every(2)), comm, delay=1)
        for _ in range(2):
            trainer.step()
        before = everything(trainer.model)
        with pytest.raises(ZeroDivisionError):
            trainer.sync.evaluate(lambda model: [model.eval(), 1 / 0])
        assert same(everything(trainer.model), before)
        assert trainer.model.training

    simulate(train, 2)


def test_the_context_finishes_and_keeps_the_last_events() -> None:
    def train(comm: Comm, managed: bool) -> list[Any]:
        trainer = Trainer(DiLoCo(when=Every(4)), comm, delay=3)
        if managed:
            with trainer.sync as sync:
                assert sync is trainer.sync
                assert [*itertools.takewhile(lambda n: trainer.step() or n < 4, sync.until(9))] == [0, 1, 2, 3]
            events = sync.events()
        else:
            for _ in range(5):
                trainer.step()
            events = trainer.sync.finish()
        return [[(e.step, e.losses) for e in events if isinstance(e, Round)], everything(trainer.model)]

    expected = simulate(lambda comm: train(comm, False), 3)
    assert len(expected[0][0]) == 1
    assert same(simulate(lambda comm: train(comm, True), 3), expected)


def test_an_error_in_the_context_is_raised_at_once() -> None:
    """Without a word to the other, who has ended: a collective would be a mismatch."""

    def train(comm: Comm) -> int:
        trainer = Trainer(LocalSGD(when=Every(2)), comm)
        trainer.step()
        sent = trainer.sync.bytes_sent
        with pytest.raises(ZeroDivisionError), trainer.sync:
            1 / 0  # noqa: B018
        return trainer.sync.bytes_sent - sent

    assert simulate(train, 2) == [0, 0]


def test_steps_without_a_loss() -> None:
    def train(comm: Comm, told: bool) -> Any:
        model = network()
        sync = Synchronizer(model, DiLoCo(when=Every(2)), comm)
        with torch.no_grad():
            for _ in range(4):
                model[0].weight.add_(comm.rank + 1.0)
                event = sync.step(1.0) if told else sync.step()
        assert event
        assert event.losses == ((1.0,) * 3 if told else (float("inf"),) * 3)
        assert told == ("loss" in str(event))
        sync.finish()
        return everything(model)

    assert same(simulate(lambda c: train(c, False), 3), simulate(lambda c: train(c, True), 3))


@pytest.mark.parametrize(
    "strategy",
    [PSOPS(), InformedSwarm(trust="loss"), Warmup(PSOPS(), 3), OSP(auto=True)],
    ids=lambda s: str(s)[:9],
)
def test_a_method_that_needs_losses_says_so_at_the_first_step(strategy: Strategy) -> None:
    def train(comm: Comm) -> None:
        sync = Synchronizer(network(), strategy, comm, options())
        sync.reduce()
        with pytest.raises(UsageError, match=rf"step 1: {type(strategy).__name__} compares the workers' losses"):
            sync.step()
        assert sync.steps == 0

    simulate(train, 1)


def test_a_round_prints_as_one_line() -> None:
    event = simulate(lambda comm: Trainer(LocalSGD(when=Every(1)), comm).step(), 2)[0]
    assert str(event).startswith("round 1 at step 1: LocalSGD of 2 of 2 workers, mean loss ")
    assert "\n" not in str(event)


class Two(Trainer):
    """Two optimizers, a schedule and an average."""

    def __init__(self, strategy: Strategy, comm: Comm, **given: Any) -> None:
        super().__init__(strategy, comm, **given)
        halves = [*self.model.parameters()]
        self.halves = [Momentum(halves[:2]), torch.optim.AdamW(halves[2:], lr=0.01)]
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.halves[1], 20)  # type: ignore[arg-type]
        self.ema = EMA(self.sync, 0.5)
        self.things = (self.model, *self.halves, self.schedule, self.ema)

    def step(self) -> Any:
        loss = self.backward()
        self.sync.reduce(0.1)
        for half in self.halves:
            half.step()
        self.schedule.step()
        event = self.sync.step(loss, 0.1)
        self.ema.update(event)
        return event

    def left(self) -> list[Any]:
        self.sync.finish()
        return [everything(self.model), self.ema.evaluate(everything), self.ema.state_dict()]


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("case", ["plain", "delay, codec", "delay, mix, fragments", "warm-up", "gradients"])
def test_a_run_goes_on_from_its_checkpoint_bit_for_bit(case: str, tmp_path: Path) -> None:
    strategy, given = CASES[case]

    def whole(comm: Comm) -> list[Any]:
        trainer = Two(strategy, comm, **given)
        for _ in range(10):
            trainer.step()
        return trainer.left()

    def begun(comm: Comm) -> None:
        trainer = Two(strategy, comm, **given)
        assert not trainer.sync.load(tmp_path, *trainer.things)
        for step in trainer.sync.until(6):
            trainer.step()
            if step in (2, 4):
                trainer.sync.save(tmp_path, *trainer.things)

    def resumed(comm: Comm) -> list[Any]:
        trainer = Two(strategy, comm, **given)
        assert trainer.sync.load(str(tmp_path), *trainer.things)
        trainer.done = trainer.sync.steps
        assert [trainer.step() for _ in trainer.sync.until(10)]
        return trainer.left()

    simulate(begun, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000005"]
    assert same(simulate(resumed, 3), simulate(whole, 3))


def test_a_run_goes_on_from_a_checkpoint_of_before_there_were_eager_rounds() -> None:
    def train(comm: Comm) -> None:
        sync = Trainer(LocalSGD(when=Every(2)), comm).sync
        saved = sync.state_dict()
        saved["configuration"].pop("eager", None)
        sync.load_state_dict(saved)

    simulate(train, 2)


def test_another_number_of_workers_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    def save(comm: Comm) -> list[Tensor]:
        trainer = Trainer(LocalSGD(when=Every(4)), comm)
        for _ in range(5):
            trainer.step()
        trainer.sync.save(tmp_path, trainer.model, trainer.optimizer)
        return [*tensors_of(trainer.model).values()]

    def load(comm: Comm) -> list[Tensor]:
        trainer = Trainer(LocalSGD(when=Every(4)), comm)
        assert trainer.sync.load(tmp_path, trainer.model, trainer.optimizer)
        assert trainer.sync.steps == 5
        found = [*tensors_of(trainer.model).values()]
        trainer.step()
        return found

    saved, loaded = simulate(save, 2), simulate(load, 3)
    assert same(loaded[:2], saved)
    for mean, a, b in zip(loaded[2], *saved, strict=True):
        assert same(mean, a if mean.dtype == torch.int64 else (a + b) / 2)


def test_what_cannot_be_saved_or_loaded_is_named(tmp_path: Path) -> None:
    class Odd:
        def state_dict(self) -> Any:
            return {"call": [Path("here")]}

        def load_state_dict(self, saved: Any) -> None:
            raise AssertionError(saved)

    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(), comm)
        sync, model, optimizer = trainer.sync, trainer.model, trainer.optimizer
        trainer.step()
        for things, said in (
            ((optimizer,), "expected the model that the Synchronizer was given"),
            ((model, object()), "expected things with state_dict and load_state_dict, found object"),
            ((model, Odd()), "the state of Odd is no data"),
        ):
            with pytest.raises(UsageError, match=said):
                sync.save(tmp_path, *things)
        assert not [*tmp_path.iterdir()]
        sync.save(tmp_path, model, optimizer)
        with pytest.raises(CheckpointError, match="things beside the model: expected"):
            sync.load(tmp_path, model)
        other = Trainer(DiLoCo(), comm)
        with pytest.raises(CheckpointError, match="strategy: expected DiLoCo"):
            other.sync.load(tmp_path, other.model, other.optimizer)

    simulate(train, 1)


@pytest.mark.parametrize("end", ["step", "context", "nothing"])
def test_no_warning_beside_an_error_or_without_a_step(end: str) -> None:
    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(), comm)
        trainer.sync.events()
        if end == "step":
            trainer.step()
            with pytest.raises(UsageError), trainer.sync:
                trainer.sync.step(torch.zeros(2))
        if end == "context":
            trainer.step()
            with pytest.raises(ZeroDivisionError), trainer.sync:
                1 / 0  # noqa: B018

    gc.collect()  # what other tests have left
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        simulate(train, 1)
        gc.collect()
    assert not found


def floats(model: nn.Module) -> list[Tensor]:
    return [tensor for tensor in everything(model) if tensor.is_floating_point()]


def test_the_average_is_that_of_torch() -> None:
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    def train(comm: Comm) -> None:
        trainer = Trainer(LocalSGD(when=Every(2)), comm)
        ema = EMA(trainer.sync, 0.9)
        assert same(ema.evaluate(everything), everything(trainer.model))
        theirs = AveragedModel(trainer.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        for _ in range(8):
            event = trainer.step()
            ema.update(event)
            if event:
                theirs.update_parameters(trainer.model)
        before = everything(trainer.model)
        assert same(ema.evaluate(floats), floats(theirs.module))
        ema.evaluate(meddle)
        assert same(everything(trainer.model), before)
        trainer.sync.finish()
        ema.apply()
        assert same(floats(trainer.model), floats(theirs.module))

    simulate(train, 1)


def test_the_average_of_workers_that_differ_is_the_average_of_their_means() -> None:
    def train(comm: Comm) -> tuple[Tensor, list[Tensor]]:
        trainer = Trainer(NoLoCo(when=Every(1)), comm)
        ema, seen = EMA(trainer.sync, 0.8), []
        for _ in range(6):
            ema.update(trainer.step())
            seen.append(trainer.weights().double())
        return torch.cat([t.double().flatten() for t in ema.evaluate(everything) if t.is_floating_point()]), seen

    found = simulate(train, 3)
    means = torch.stack([torch.stack(seen) for _, seen in found]).mean(0)
    expected = means[0]
    for mean in means[1:]:
        expected = 0.8 * expected + 0.2 * mean
    for shown, _ in found:
        assert same(shown, found[0][0])
        assert shown.numel() == expected.numel()
        assert torch.allclose(shown.sort()[0], expected.sort()[0], rtol=1e-5, atol=1e-6)


def test_arguments_of_the_average() -> None:
    def train(comm: Comm) -> None:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(), comm)
        with pytest.raises(UsageError, match=r"expected a decay of at least 0 and below 1, found 1.0"):
            EMA(sync, 1.0)
        with pytest.raises(CheckpointError, match=r"EMA: decay: expected 0.9"):
            EMA(sync, 0.9).load_state_dict(EMA(sync, 0.8).state_dict())

    simulate(train, 1)


def test_a_program_says_in_a_line_what_its_workers_could_not_do_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def train(comm: Comm) -> None:
        comm.gather(torch.zeros(1 + comm.rank))

    with pytest.raises(SystemExit) as found:
        swarmstep.run(train, 2)
    assert isinstance(found.value.__cause__, CollectiveMismatch)
    assert found.value.code == CollectiveMismatch.exit_code
    assert capsys.readouterr().err == f"swarmstep: {found.value.__cause__}\n"
