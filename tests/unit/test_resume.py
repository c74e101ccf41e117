"""Loading a checkpoint's state: what does not fit is named, and nothing is loaded then."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from helpers import Trainer, same
from swarmstep import PSOPS, Comm, Every, LocalSGD, Strategy, Synchronizer, simulate
from swarmstep.errors import CheckpointError

STRATEGY = PSOPS(when=Every(2))


def trained(comm: Comm, strategy: Strategy = STRATEGY, steps: int = 3, seed: int = 0) -> Trainer:
    trainer = Trainer(strategy, comm, seed)
    for _ in range(steps):
        trainer.step()
    return trainer


def alone(make: Any) -> Any:
    return simulate(make, 1)[0]


def refused(trainer: Trainer, saved: dict[str, Any]) -> str:
    """Check that loading is refused and changes nothing; return what is said."""
    before = copy.deepcopy(trainer.sync.state_dict())
    with pytest.raises(CheckpointError) as caught:
        trainer.sync.load_state_dict(saved)
    assert same(trainer.sync.state_dict(), before)
    return str(caught.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (LocalSGD(when=Every(2)), "strategy: expected LocalSGD (this run), found PSOPS (the checkpoint)"),
        (PSOPS(when=Every(2), social=0.6), "social: expected 0.6 (this run), found 0.5 (the checkpoint)"),
        (PSOPS(when=Every(3)), "when: expected Every(n=3) (this run), found Every(n=2) (the checkpoint)"),
    ],
)
def test_another_strategy_is_named(other: Strategy, said: str) -> None:
    saved = alone(trained).sync.state_dict()
    assert refused(alone(lambda comm: trained(comm, other, 0)), saved).startswith(said)


def test_another_rank_size_or_seed_is_named() -> None:
    saved = [trainer.sync.state_dict() for trainer in simulate(trained, 2)]
    fresh = simulate(lambda comm: trained(comm, steps=0), 2)[0]
    assert refused(fresh, saved[1]).startswith("rank: expected 0 (this run), found 1 (the checkpoint)")
    lonely = alone(lambda comm: trained(comm, steps=0))
    assert refused(lonely, saved[0]).startswith("world size: expected 1 (this run), found 2")
    seeded = simulate(lambda comm: trained(comm, steps=0, seed=3), 2)[0]
    assert refused(seeded, saved[0]).startswith("seed: expected 3 (this run), found 0")


def test_weights_loaded_in_the_wrong_order_are_noticed() -> None:
    trainer = alone(trained)
    model, saved = copy.deepcopy(trainer.model.state_dict()), trainer.sync.state_dict()
    late = alone(lambda comm: trained(comm, steps=0))
    said = refused(late, saved)
    assert said.startswith("weights: the model does not hold the weights of the checkpoint")
    assert "load the model's state dict before Synchronizer.load_state_dict" in said
    late.model.load_state_dict(model)
    late.sync.load_state_dict(saved)
    assert same(late.sync.state_dict(), saved)


FIELDS = ["rank", "configuration", "weights", "step", "fragments"]
FIELDS += ["window", "norm", "phase", "trigger", "state", "codec", "staged", "pending"]


@pytest.mark.parametrize("field", FIELDS)
def test_a_missing_field_is_named(field: str) -> None:
    trainer = alone(trained)
    saved = trainer.sync.state_dict()
    saved["step"] = 77
    del (saved if field in saved else saved["fragments"][0])[field]
    assert refused(trainer, saved).startswith(f"{field}: missing from the checkpoint")


def test_states_of_other_shapes_dtypes_and_fields_are_named() -> None:
    trainer = alone(trained)
    for change, said in (
        ({"velocity": torch.zeros(3)}, "state.velocity: expected (torch.float32, torch.Size([107]))"),
        (
            {"owner": torch.tensor(1.0)},
            "state.owner: expected (torch.int64, torch.Size([])) (this run)",
        ),
        ({"speed": torch.zeros(1)}, "fields of state: expected ["),
    ):
        saved = trainer.sync.state_dict()
        saved["fragments"][0]["state"] |= change
        assert refused(trainer, saved).startswith(said)


def test_what_is_saved_is_numbers_strings_and_tensors_apart_from_the_run() -> None:
    trainer = alone(trained)
    saved = trainer.sync.state_dict()
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    assert same(torch.load(file, weights_only=True), saved)
    kept = copy.deepcopy(saved)
    trainer.step()
    assert same(saved, kept)
    assert not same(trainer.sync.state_dict(), saved)


def test_the_loss_window_goes_on_in_the_middle() -> None:
    def train(comm: Comm) -> tuple[Any, Any]:
        first = Synchronizer(torch.nn.Linear(2, 2), LocalSGD(when=Every(3)), comm)
        first.step(1.0)
        first.step(2.0)
        second = Synchronizer(torch.nn.Linear(2, 2), LocalSGD(when=Every(3)), comm)
        second.load_state_dict(first.state_dict() | {"weights": second.state_dict()["weights"]})
        return first.step(6.0), second.step(6.0)

    for whole, resumed in simulate(train, 2):
        assert whole.losses == resumed.losses == (3.0, 3.0)


@pytest.mark.parametrize(("layout", "age"), [(None, "an older"), (1, "an older"), (99, "a newer")])
def test_a_checkpoint_of_another_layout_says_so(layout: int | None, age: str) -> None:
    def load(comm: Comm) -> str:
        saved = trained(comm).sync.state_dict()
        if layout is None:
            del saved["layout"]
        else:
            saved["layout"] = layout
        return refused(trained(comm), saved)

    said = alone(load)
    assert f"layout: expected a checkpoint of layout 4, found {layout or 1}" in said
    assert f"{age} version of swarmstep wrote" in said
