"""What a strategy sees and what the runtime drives are two types; a wrapper inherits nothing by accident."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swarmstep import Coded, Comm, DistComm, Group, Int8, Metered, SimComm, simulate
from swarmstep.comm.background import Done
from swarmstep.comm.group import Decision
from swarmstep.errors import UsageError
from wrapped import Wrapped

MEMBERS = sorted(Group.__abstractmethods__)
LIFE = sorted(Group.__abstractmethods__ - Comm.__abstractmethods__)
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "elapse": (0.5,),
    "mean": (torch.ones(3), 2.0),
    "gather": (torch.ones(3),),
    "broadcast": (torch.ones(3), 0),
    "permute": (torch.ones(3), [0]),
    "all_to_all": (torch.ones(1, 3),),
    "sent": (torch.ones(3),),
    "split": (0, "name"),
    "start": (lambda: 7,),
    "meets": (3, True),
}
ANSWERS: dict[str, Any] = {
    "elastic": True,
    "epoch": 5,
    "names": ("a",),
    "sources": (None,),
    "clock": 3.5,
    "decide": Decision(stop=True),
    "mean": (torch.zeros(3), 2.0),
    "start": Done(lambda: 7),
    "meets": True,
    "broken": True,
    "renewal": Done(lambda: 7),
}
PROPERTIES = ("elastic", "epoch", "names", "sources", "broken")


def recording(calls: list[tuple[str, tuple[Any, ...]]]) -> Any:
    """Return a group of one that notes each member that is used, and answers with `ANSWERS`."""

    def member(name: str) -> Any:
        def use(self: Any, *arguments: Any) -> Any:
            calls.append((name, arguments))
            return self if name in ("split", "reusing", "renew") else ANSWERS.get(name, torch.zeros(3))

        return property(use) if name in PROPERTIES else use

    found = type("Recording", (Group,), {name: member(name) for name in MEMBERS})()
    found.rank, found.size = 0, 1
    return found


@pytest.mark.parametrize("forgotten", MEMBERS)
def test_a_wrapper_that_forgets_a_member_cannot_be_made(forgotten: str) -> None:
    members = {name: getattr(Wrapped, name) for name in MEMBERS if name != forgotten}
    incomplete = type("Incomplete", (Group,), {"__init__": Wrapped.__init__, **members})
    with pytest.raises(TypeError, match=forgotten):
        simulate(incomplete, 1)


def test_nothing_of_a_group_is_concrete() -> None:
    public = {name for cls in (Comm, Group) for name in vars(cls) if not name.startswith("_")}
    assert public == set(MEMBERS)


@pytest.mark.parametrize("name", MEMBERS)
def test_metered_delegates_every_member(name: str) -> None:
    calls: list[tuple[str, tuple[Any, ...]]] = []
    inner = recording(calls)
    metered = Metered(inner)
    found = getattr(metered, name)
    if name not in PROPERTIES:
        found = found(*ARGUMENTS.get(name, ()))
    assert calls == [(name, ARGUMENTS.get(name, ()))]
    if name in ("split", "reusing"):
        assert isinstance(found, Metered)
        assert found.bare is inner
        assert found.traffic is metered.traffic
    elif name in ANSWERS:
        assert found is ANSWERS[name]


def test_coded_is_a_comm_without_a_life_of_its_own() -> None:
    def train(comm: Group) -> list[str]:
        coded = Coded(comm, Int8(), torch.zeros(4))
        assert isinstance(coded, Comm)
        assert not isinstance(coded, Group)
        return [name for name in LIFE if hasattr(coded, name)]

    assert simulate(train, 1) == [["recycle"]]  # its own: of its buffers


def test_every_end_is_a_group() -> None:
    assert all(issubclass(end, Group) for end in (SimComm, DistComm, Metered))


def test_a_group_that_is_not_elastic_says_so() -> None:
    def train(comm: Group) -> None:
        assert (comm.elastic, comm.epoch, comm.names, comm.sources) == (False, 0, (), ())
        assert comm.decide() == Decision()
        with pytest.raises(UsageError, match="not elastic"):
            Metered(comm).renew()

    simulate(train, 2)
