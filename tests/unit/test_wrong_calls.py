"""Every public name, called wrongly: the error names what was given and what was expected."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import swarmstep
from swarmstep import STRATEGIES, Comm, Every, LocalSGD, Options, Synchronizer, simulate
from swarmstep.errors import UsageError

WRONG: dict[str, Any] = {
    "the class LocalSGD": LocalSGD,
    "the class Every": Every,
    "'x' of type str": "x",
    "{'a': 1} of type dict": {"a": 1},
    "None": None,
}
SETTINGS: list[Any] = [*STRATEGIES.values(), swarmstep.Warmup, Every, swarmstep.GradientChange, Options]
SETTINGS += [
    swarmstep.Balanced,
    swarmstep.EveryTime,
    swarmstep.QuadraticRule,
    swarmstep.Int8,
    swarmstep.Int4,
    swarmstep.TopK,
    swarmstep.NMCodec,
    swarmstep.LowRank,
    swarmstep.SparseLoCo,
]
NEEDED: dict[str, dict[str, Any]] = {
    "QuadraticRule": {"base": 2, "alpha": 0.1},
    "Warmup": {"then": LocalSGD(), "steps": 2},
    "Every": {"n": 1},
    "Balanced": {"n": 1},
    "EveryTime": {"seconds": 1.0},
    "TopK": {"fraction": 0.1},
}


def alone(call: Callable[[Any], object]) -> object:
    return simulate(call, 1)[0]


def calls() -> Iterator[tuple[str, Callable[[Any], object]]]:
    """Yield each argument of a public name that is an object or a number, and what gives it a value."""
    model = nn.Linear(2, 1)
    yield "Synchronizer: model", lambda x: alone(lambda comm: Synchronizer(x, LocalSGD(), comm))
    yield "Synchronizer: strategy", lambda x: alone(lambda comm: Synchronizer(model, x, comm))
    yield "Synchronizer: comm", lambda x: Synchronizer(model, LocalSGD(), x)
    yield "Synchronizer: options", lambda x: alone(lambda comm: Synchronizer(model, LocalSGD(), comm, x))
    yield (
        "Synchronizer.load_state_dict: saved",
        lambda x: alone(lambda comm: Synchronizer(model, LocalSGD(), comm).load_state_dict(x)),
    )
    yield "Balance: sync", lambda x: swarmstep.Balance(x)
    yield "simulate: train", lambda x: simulate(x, 1)
    yield "run: train", lambda x: swarmstep.run(x, 1)
    yield "run: workers", lambda x: swarmstep.run(lambda comm: None, x)
    yield "EMA: sync", swarmstep.EMA
    yield "shard: comm", lambda x: swarmstep.shard([1], x)
    yield "seed_rank: seed", lambda x: swarmstep.seed_rank(x, 0)
    yield "seed_rank: rank", lambda x: swarmstep.seed_rank(0, x)
    yield "simulate: workers", lambda x: simulate(lambda comm: None, x)
    yield "average_gradients: model", lambda x: alone(lambda comm: swarmstep.average_gradients(x, comm))
    yield "average_gradients: comm", lambda x: swarmstep.average_gradients(model, x)
    yield "Metered: comm", lambda x: swarmstep.Metered(x)
    yield "Coded: comm", lambda x: swarmstep.Coded(x, swarmstep.Int8(), torch.zeros(1))
    yield "Coded: codec", lambda x: alone(lambda comm: swarmstep.Coded(comm, x, torch.zeros(1)))
    yield "Coded: like", lambda x: alone(lambda comm: swarmstep.Coded(comm, swarmstep.Int8(), x))
    yield "DistComm: data", lambda x: swarmstep.DistComm(x)
    yield "DistComm: control", lambda x: swarmstep.DistComm(None, x)
    for kind in SETTINGS:
        for field in dataclasses.fields(kind):
            if field.init:
                needed = {k: v for k, v in NEEDED.get(kind.__name__, {}).items() if k != field.name}
                name = field.name
                yield f"{kind.__name__}: {name}", lambda x, k=kind, n=name, more=needed: k(**{n: x}, **more)


CALLS = dict(calls())


def fits(what: str, wrong: str) -> bool:
    """Return whether a value that is wrong elsewhere is right here, or of the right type at least."""
    owner, _, name = what.partition(": ")
    kind = getattr(swarmstep, owner, None)
    hint = typing.get_type_hints(kind)[name] if dataclasses.is_dataclass(kind) else None
    parts = (hint, *typing.get_args(hint))
    return {
        "None": type(None) in parts or what in ("Synchronizer: options", "DistComm: data", "DistComm: control"),
        "'x' of type str": str in parts or typing.get_origin(hint) is typing.Literal,
        "{'a': 1} of type dict": what
        in ("Options: stateful", "Options: optimizer_state", "Synchronizer.load_state_dict: saved"),
    }.get(wrong, what in ("simulate: train", "run: train"))  # a class makes an object with each worker's comm


@pytest.mark.parametrize("what", CALLS)
def test_the_error_names_what_was_given_and_expected(what: str) -> None:
    for wrong, value in WRONG.items():
        if not fits(what, wrong):
            with pytest.raises(UsageError) as caught:
                CALLS[what](value)
            assert str(caught.value).startswith(f"{what}: expected "), wrong
            assert f"found {wrong}" in str(caught.value)


def test_no_public_name_is_left_out() -> None:
    called = {what.partition(":")[0].partition(".")[0] for what in CALLS}
    without_arguments = {"Never", "Bfloat16", "STRATEGIES", "SoloComm"}
    abstract = {name for name in swarmstep.__all__ if inspect.isabstract(getattr(swarmstep, name))}
    made_by_the_library = {"Round", "MembershipChange", "SimComm", "Membership"}
    assert {*swarmstep.__all__} <= called | without_arguments | abstract | made_by_the_library
    for name in abstract:
        with pytest.raises(TypeError, match=f"abstract class {name} "):
            getattr(swarmstep, name)()


def test_what_is_said() -> None:
    wrong: Any = Every
    with pytest.raises(UsageError) as caught:
        LocalSGD(when=wrong)
    assert str(caught.value) == (
        "LocalSGD: when: expected an instance of When, found the class Every; give an instance, such as Every()"
    )
    wrong = "int8"
    with pytest.raises(UsageError, match="Options: codec: expected an instance of Codec or None, found 'int8' of"):
        Options(codec=wrong)
    wrong = nn.Linear
    with pytest.raises(UsageError, match="Options: probe: expected a function or None, found the class Linear"):
        Options(probe=wrong)
    with pytest.raises(UsageError, match="DistComm: expected a process group, found none; call DistComm"):
        swarmstep.DistComm()


def test_numbers_of_any_kind_are_numbers() -> None:
    number: Any = numpy.float32(0.5)
    assert swarmstep.DiLoCo(lr=1).lr == 1
    assert swarmstep.DiLoCo(lr=number).lr == 0.5
    number = numpy.int64(2)
    assert Every(number).n == 2
    assert simulate(lambda comm: comm.size, number) == [2, 2]


@pytest.mark.parametrize("kind", SETTINGS)
def test_copies_of_settings_need_no_arguments(kind: Any) -> None:
    made = kind(**NEEDED.get(kind.__name__, {}))
    assert dataclasses.replace(made) == copy.deepcopy(made) == pickle.loads(pickle.dumps(made)) == made


@dataclasses.dataclass(frozen=True)
class Mine(LocalSGD):
    rate: float = 0.5
    measure: Callable[[Tensor], Tensor] | None = None


def test_a_strategy_of_ones_own_is_checked_as_well() -> None:
    wrong: Any = "x"
    assert Mine(rate=2).rate == 2
    with pytest.raises(UsageError, match="Mine: rate: expected a number, found 'x'"):
        Mine(rate=wrong)
    with pytest.raises(UsageError, match="Mine: measure: expected a function or None, found 'x'"):
        Mine(measure=wrong)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        ("0.5", "one of type str"),
        ({"loss": 0.5}, "one of type dict"),
        (1j, "one of type complex"),
        (torch.zeros(2), "shape [2], torch.float32"),
        (torch.tensor(1j), "shape [], torch.complex64"),
    ],
)
def test_a_loss_that_is_no_number_is_named(loss: object, found: str) -> None:
    def train(comm: Comm) -> str:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(), comm)
        with pytest.raises(UsageError) as caught:
            sync.step(loss)  # type: ignore[arg-type]
        return str(caught.value)

    assert simulate(train, 1) == [f"Synchronizer.step: expected a scalar loss, found {found}"]


@pytest.mark.parametrize(
    "loss", [1, True, Fraction(1, 2), numpy.float32(0.5), numpy.array([0.5]), torch.ones(1, 1), 10**400]
)
def test_losses_of_any_type_of_number(loss: object) -> None:
    def train(comm: Comm) -> None:
        sync = Synchronizer(nn.Linear(1, 1), LocalSGD(when=Every(1)), comm)
        assert sync.step(loss) is not None  # type: ignore[arg-type]

    simulate(train, 2)
