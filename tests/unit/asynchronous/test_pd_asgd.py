"""PD-ASGD by what is known of it: the law of delays, SGD without any, and how late each layer is."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from swarmstep.asynchronous import PDASGD, Flat, Gradient, Simulator
from swarmstep.errors import UsageError

from .quadratics import loss, network


class Bowls(nn.Module):
    """x^2 / 2 for each of some layers of one element."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(torch.ones(1, dtype=torch.float64) for _ in range(layers))


def bowls(model: nn.Module, worker: int, step: int) -> Tensor:
    assert isinstance(model, Bowls)
    return sum((layer.square().sum() / 2 for layer in model.layers), torch.zeros(()))


def simulated(backward: int, layers: int, lr: float, seconds: float, **options: object) -> Simulator:
    """Return a simulator in which a forward pass takes 1 s."""
    model = Bowls(layers)
    method = PDASGD(backward, model, bowls, lr=lr, **options)  # type: ignore[arg-type]
    return Simulator(method, Flat(model).read(), method.seconds(1.0, seconds))


def course(simulator: Simulator, steps: int) -> list[float]:
    """Return the last layer's weight after each of its first writes."""
    found = [1.0]
    while len(found) <= steps:
        simulator.run(events=1)
        if simulator.states[0].writes[-1] == len(found):
            found.append(float(simulator.result()[-1]))
    return found


@pytest.mark.parametrize("tau", [0, 1, 4, *(pytest.param(tau, marks=pytest.mark.slow) for tau in (2, 8))])
def test_the_delay_law(tau: int) -> None:
    """B backward threads, and backward passes of a bit less than B forward passes: tau = B. With one pending: 0.

    x_{t+1} = x_t - eta x_{t-tau} is stable if and only if eta < 2 sin(pi / (2 (2 tau + 1))).
    """
    bound = 2 * math.sin(math.pi / (2 * (2 * tau + 1)))
    for lr, stable in ((0.98 * bound, True), (1.02 * bound, False)):
        simulator = simulated(max(1, tau), 1, lr, max(1, tau) - 0.5, pending=tau + 1)
        found = course(simulator, 70 * (tau + 1))
        for t in range(len(found) - 1):
            assert found[t + 1] == pytest.approx(found[t] - lr * found[max(0, t - tau)], rel=1e-9, abs=1e-12)
        part = len(found) // 5
        first, last = max(map(abs, found[:part])), max(map(abs, found[-part:]))
        assert last < 0.5 * first if stable else last > 2 * first


def test_one_pending_is_plain_sgd_bit_for_bit() -> None:
    model, other = network(), network()
    simulator = Simulator(PDASGD(1, model, loss, lr=0.1, pending=1), x := Flat(model).read(), (1.0, 0.5))
    while simulator.states[0].finished < 12:
        simulator.run(events=1)
    work = Gradient(other, loss)
    for step in range(12):
        x = x - 0.1 * work(x, 0, step, step, {})
    assert torch.equal(simulator.result(), x)


def delays(layerwise: bool, layers: int = 8, steps: int = 200) -> list[float]:
    """Return each layer's mean delay in writes: two backward threads, forward passes of 1 s, backward of 2."""
    simulator = simulated(2, layers, 0.01, 2.0 - 1e-6, layerwise=layerwise)
    course(simulator, steps)
    state = simulator.states[0]
    return [total / writes for total, writes in zip(state.delays, state.writes, strict=True)]


def test_how_late_each_layer_is() -> None:
    """From the end of its forward pass a layer waits for those above it, or all for all."""
    last, *_, first = reversed(delays(layerwise=True))
    assert last == pytest.approx(1.0, abs=0.02)  # 1 s of forward pass, and 1/4 s until its gradient
    assert first == pytest.approx(2.0, abs=0.03)  # 1 s, and just less than 2 s
    assert delays(layerwise=False) == pytest.approx([2.0] * 8, abs=0.03)


def test_layer_wise_writes_halve_the_time_until_a_gradient_counts() -> None:
    """From the beginning of a backward pass to the write: T (M + 1) / (2 M) on average, in place of T."""
    waits = {}
    for layerwise in (True, False):
        simulator = simulated(1, 8, 0.01, 1.0, layerwise=layerwise, pending=1)
        simulator.run(until=2.0)
        writes = [event.time - 1 for event in simulator.order if event.kind == "message" and event.node == 0]
        assert len(writes) == 8
        waits[layerwise] = sum(writes) / 8
    assert waits == pytest.approx({True: 9 / 16, False: 1.0})


def test_forward_passes_do_not_wait() -> None:
    """With twice as long backward passes two threads keep up with one; with three times as long they do not."""
    for seconds, forward in ((2.0, 100), (3.0, 67)):
        simulator = simulated(2, 4, 0.01, seconds)
        simulator.run(until=100.0)
        assert simulator.states[0].handed == pytest.approx(forward, abs=4)
        assert len(simulator.states[0].reads) <= 5


@pytest.mark.parametrize(
    ("options", "message"),
    [({"backward": 0}, "backward 0"), ({"pending": 0}, "pending 0"), ({"lr": 11.0}, "lr 11")],
)
def test_wrong_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PDASGD(**{"backward": 2, "model": Bowls(1), "loss": bowls, "lr": 0.1, **options})  # type: ignore[arg-type]
