"""LayUp: what push-sum conserves, whatever is lost, and what one worker alone does."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from swarmstep.asynchronous import Flat, LayUp, Message, Simulator
from swarmstep.asynchronous.nodes import Box
from swarmstep.errors import UsageError

from .quadratics import loss, network


def apart(workers: int, lr: float, lost: float = 0.0, latency: float = 0.0) -> Simulator:
    """Return workers at random points of their own."""
    model = network()
    method = LayUp(workers, model, loss, lr=lr, seed=5)
    simulator = Simulator(
        method, Flat(model).read(), [1.0 + w for w in range(workers)], jitter=0.3, latency=latency, lost=lost
    )
    for worker, state in simulator.states.items():
        state.x = torch.randn(state.x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(worker))
        state.point = state.x.clone()
    return simulator


def sums(simulator: Simulator, messages: Iterable) -> tuple[Tensor, Tensor]:
    """Return sum w [L] and sum w x [P] over workers and messages."""
    layers = list(Flat(network()).layout.sizes)
    w, wx = torch.zeros(len(layers), dtype=torch.float64), [torch.zeros(n, dtype=torch.float64) for n in layers]
    for state in simulator.states.values():
        for layer, piece in enumerate(state.x.split(layers)):
            w[layer] += 2.0 ** state.weights[layer]
            wx[layer] += 2.0 ** state.weights[layer] * piece
    for message in messages:
        layer, log_w = int(message.numbers[0]), message.numbers[1]
        w[layer] += 2.0**log_w
        wx[layer] += 2.0**log_w * message.x
    return w, torch.cat(wx)


@pytest.mark.parametrize(("lost", "latency"), [(0.0, 0.0), (0.3, 2.5)])
def test_without_steps_nothing_is_lost_but_what_is_lost(lost: float, latency: float) -> None:
    """Sum w and sum w x, with what is under way and what was lost, stay; all weights reach one common vector."""
    simulator = apart(5, lr=0.0, lost=lost, latency=latency)
    before, gone = sums(simulator, []), []
    mean = before[1] / torch.cat([torch.full((n,), 5.0) for n in Flat(network()).layout.sizes])
    for _ in range(1800):
        queue = {pair: list(q) for pair, q in simulator._nodes.under_way.items()}
        simulator.run(events=1)
        event = simulator.order[-1]
        if event.kind == "lost":
            gone.append(queue[event.source, event.node][0])
    assert bool(gone) == (lost > 0)
    after = sums(simulator, [*gone, *(message for _, message in simulator.under_way)])
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(old, new, rtol=0, atol=1e-13)
    xs = torch.stack([state.x for state in simulator.states.values()])
    assert float(xs.std(0).max()) < 1e-6
    if not lost:
        assert torch.allclose(simulator.result(), mean, rtol=0, atol=1e-6)


def test_weights_never_run_out() -> None:
    """A share of 0.3 lost for 20,000 steps leaves weights that no number could hold."""
    simulator = apart(2, lr=0.0, lost=0.6)
    for state in simulator.states.values():
        state.weights = [-5000.0 - state.node] * 4
    simulator.run(events=400)
    assert all(state.x.isfinite().all() for state in simulator.states.values())
    assert simulator.result().isfinite().all()
    assert all(weight < -5000 for state in simulator.states.values() for weight in state.weights)


def test_one_worker_is_plain_sgd_bit_for_bit() -> None:
    model, other = network().eval(), network().eval()
    simulator = Simulator(LayUp(1, model, loss, lr=0.1), Flat(model).read(), [1.0])
    simulator.run(events=30)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    for step in range(30):
        optimizer.zero_grad()
        loss(other, 0, step).backward()
        optimizer.step()
    assert torch.equal(simulator.result(), Flat(other).read())


def test_layers_leave_during_the_backward_pass_last_layer_first() -> None:
    model = network()
    method = LayUp(3, model, loss, lr=0.1)
    box: list[tuple[int, Message]] = []
    method.on_step(method.init(1, Flat(model).read()), Box(lambda to, message: box.append((to, message))))
    assert 1 not in {to for to, _ in box}
    posted = [int(message.numbers[0]) for _, message in box]
    assert sorted(posted) == [0, 1, 2, 3]
    assert {*posted[:2]} == {2, 3}
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


def test_it_learns_with_losses_and_a_slow_worker() -> None:
    model = network()
    simulator = Simulator(LayUp(4, model, loss, lr=0.1), Flat(model).read(), [1, 1, 1, 3], latency=0.5, lost=0.1)

    def mean_loss() -> float:
        Flat(model).write(simulator.result())
        model.eval()
        found = sum(loss(model, 9, step).item() for step in range(20)) / 20
        model.train()
        return found

    before = mean_loss()
    simulator.run(until=100.0)
    assert mean_loss() < 0.6 * before


def test_a_layer_without_a_gradient_stays_and_a_shared_one_leaves_once() -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in ("used", "tied", "unused")})
    model["tied"].weight = model["used"].weight
    method = LayUp(2, model, lambda model, worker, step: model["tied"](model["used"](torch.ones(2))).sum(), lr=0.1)
    simulator = Simulator(method, Flat(model).read(), [1.0, 1.5])
    start = simulator.result()
    simulator.run(until=9.0)
    messages = [event for event in simulator.order if event.kind == "message"]
    assert len(messages) == 9 + 6
    assert torch.equal(simulator.result()[4:], start[4:])
    assert not torch.equal(simulator.result()[:4], start[:4])


def test_wrong_arguments() -> None:
    with pytest.raises(UsageError, match=r"found workers 0, lr 0\.1"):
        LayUp(0, network(), loss, lr=0.1)
    with pytest.raises(UsageError, match="found workers 2, lr -1"):
        LayUp(2, network(), loss, lr=-1)


def test_who_hands_over_leaves_the_weighted_mean_with_the_other() -> None:
    """One worker then has sum w x / sum w of all, layer by layer."""
    model = network()
    method = LayUp(3, model, loss, lr=0.1, seed=1)
    simulator = Simulator(method, Flat(model).read(), (1.0, 2.0, 3.0))
    simulator.run(events=300)
    states = {node: copy.deepcopy(state) for node, state in simulator.states.items()}
    expected, posts = method.result(states), list[Message]()
    for node in (1, 2):
        method.hand_over(states[node], 0, Box(lambda to, message: posts.append(message)))
    for message in posts:
        method.on_message(states[0], message, Box(lambda to, message: None))
    assert torch.allclose(states[0].x, expected, rtol=0, atol=1e-14)
    assert [method.is_last(message) for message in posts] == ([False] * 3 + [True]) * 2
    assert not torch.equal(states[1].x, expected)  # it stays as it was
