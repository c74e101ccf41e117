"""What is promised of every asynchronous method, and what users see of it."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import pytest
import torch

from swarmstep import asynchronous
from swarmstep.asynchronous import PDASGD, SERVER, AsGrad, Displacement, Flat, LayUp, Message, Outer, Quorum
from swarmstep.asynchronous.nodes import Box, Nodes
from swarmstep.cards import ASYNCHRONOUS, CITATIONS, bibtex
from swarmstep.errors import UsageError

from .quadratics import ZERO, asgrad, loss, network

METHODS = {cls.card.name: cls for cls in (AsGrad, LayUp, PDASGD, Quorum)}


def test_every_name_is_documented() -> None:
    for name in asynchronous.__all__:
        found = getattr(asynchronous, name)
        if name != "SERVER":
            assert len(inspect.getdoc(found) or "") > 20, name
            assert not (inspect.getdoc(found) or "").startswith(f"{name}("), name


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_a_card_a_paper_and_says_its_cost_and_source(name: str) -> None:
    assert METHODS[name].card is ASYNCHRONOUS[name]
    assert CITATIONS[name] in bibtex(CITATIONS[name])
    text = inspect.getdoc(METHODS[name]) or ""
    assert "Cost:" in text
    assert "Source:" in text
    assert "Ours" in text


@pytest.mark.parametrize("name", METHODS)
def test_what_a_job_or_step_sends_is_on_the_card(name: str) -> None:
    model = network()
    work, x = Displacement(model, loss, 2, lambda ps: torch.optim.SGD(ps, lr=0.1)), Flat(model).read()
    methods = {
        "asgrad": AsGrad(3, work, Outer(1.0)),
        "layup": LayUp(3, model, loss, lr=0.1),
        "pd-asgd": PDASGD(2, model, loss, lr=0.1),
        "quorum": Quorum(3, work, Outer(1.0), 2),
    }
    method = methods[name]
    state = method.init(0, x)
    sent: list[Message] = []
    box = Box(lambda to, message: sent.append(message))
    if method.has_server:
        method.on_message(state, Message(SERVER, (0, 0, 0), x), box)
    assert method.ready(state)
    method.on_step(state, box)
    assert method.card.traffic == "1"
    assert sum(message.x.numel() for message in sent) == len(x)


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[3] / "examples" / "asynchronous.py"
    spec = importlib.util.spec_from_file_location("example_asynchronous", path)
    assert spec
    assert spec.loader
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    monkeypatch.setattr(example, "LONGEST", 24.0)
    found = {name: example.run(name, 0) for name in example.methods(network(), 0)}
    rounds, plain, *_ = found.values()
    assert rounds == (24.0, 0.5)
    assert plain == (24.0, 1.0)


def test_a_message_to_nobody_is_refused() -> None:
    nodes = Nodes(asgrad(), ZERO)
    with pytest.raises(UsageError, match=r"node 0 posted a message to 9, expected one of \(0, 1, 2, 3, -1\)"):
        nodes._boxes[0].post(9, Message(0, (), ZERO))
