"""States through a change of membership: by field, by method, and trained on in the new group."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import swarmstep.when
from helpers import VARIANTS, Trainer, network, same
from swarmstep import (
    PSOPS,
    Balanced,
    Comm,
    Every,
    EveryTime,
    FedPSO,
    GradientChange,
    Hierarchical,
    InformedSwarm,
    LocalSGD,
    Never,
    QuadraticRule,
    Round,
    Strategy,
    Warmup,
    When,
    simulate,
)
from swarmstep.comm.codecs import Codec, Int8, TopK
from swarmstep.comm.error_feedback import CodecState
from swarmstep.errors import UsageError
from swarmstep.ownership import Derived, Inherited, Own, PerWorker, Place, Shared, carry
from swarmstep.runtime.flat import Flat
from swarmstep.signal import Layout, Roll, Signal
from swarmstep.strategies.parts import trust
from swarmstep.strategies.pso_ps import PSOPSState
from whole_runs import KINDS, fast_if

WORKERS, STEPS = 4, 6
LAYOUT = Layout(("a", "b"), (2, 1), 3)
# Both first ones have a newcomer and somebody who has left; the others reach no code that they do not reach.
CHANGES: list[Any] = [fast_if(True, [1, 2, 3, None]), fast_if(True, [3, None])]
CHANGES += [fast_if(False, sources) for sources in ([0, 2, 3], [0, 1, 2, 3, None, None], [2])]
METHODS: dict[str, Strategy] = {
    **VARIANTS,
    "pso-ps:ring": PSOPS(neighbours="ring"),
    "pso-ps:ring-historical": PSOPS(neighbours="ring", best="historical"),
    "hosts": Hierarchical(local_size=2, outer_every=2),
    "swarm:leave-one-out": InformedSwarm(trust="leave_one_out", audit=True),
}
TRIGGERS: list[When] = [
    Every(3),
    Never(),
    Warmup(LocalSGD(when=QuadraticRule(1, 0.1)), 3).when,
    QuadraticRule(2, 0.1),
    GradientChange(window=4),
    EveryTime(1.0),
    Balanced(3),
]
every_method = pytest.mark.parametrize("method", [method for method in METHODS if method != "hosts"])
# Those of one kind carry alike: the second change of the others is slow.
CHANGED = [
    fast_if(number == 0 or (number == 1 and method in KINDS), method, change.values[0])
    for method in METHODS
    if method != "hosts"
    for number, change in enumerate(CHANGES)
]
every_change = pytest.mark.parametrize("sources", CHANGES, ids=str)


def kinds(state: Any) -> dict[str, str]:
    hints = get_type_hints(type(state), include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items()}


def start(strategy: Strategy, comm: Comm, x: Tensor | None = None) -> Any:
    """What `init` returns in this group."""
    flat = Flat(network())
    return strategy.init(flat.read() if x is None else x, flat.layout, comm)


@functools.cache
def before(method: str, codec: Codec | None = None) -> list[dict[str, Any]]:
    """Train the old group to its third round; return what each worker's checkpoint holds, and its x."""

    def train(comm: Comm) -> dict[str, Any]:
        trainer = Trainer(dataclasses.replace(METHODS[method], when=Every(2)), comm, codec=codec)
        for _ in range(STEPS):
            trainer.step()
        return {"x": trainer.weights(), **trainer.sync.state_dict()["fragments"][0]}

    return simulate(train, WORKERS)


class After(NamedTuple):
    """The carried state of a worker, what two rounds in the new group make of it, and the model at the end."""

    carried: Any
    moved: Any
    wire: dict[str, Tensor]
    x: Tensor
    reports: list[Round]
    result: Tensor


def after(comm: Comm, method: str, sources: Sequence[int | None], codec: Codec | None = None) -> After:
    """Go on in the new group from the carried states; one that joins starts at the mean of the others."""
    strategy = dataclasses.replace(METHODS[method], when=Every(2))
    old, source = before(method, codec), sources[comm.rank]
    survivors = [s for s in sources if s is not None]
    own = old[survivors[0] if source is None else source]
    trainer = Trainer(strategy, comm, codec=codec)
    Flat(trainer.model, views=False).write(
        own["x"] if source is not None else torch.stack([old[s]["x"] for s in survivors]).mean(0)
    )
    fresh = start(strategy, comm, trainer.weights())
    state = type(fresh)(**own["state"])
    carried = strategy.carry(state, fresh, sources, comm.rank)
    check_apart(carried, state, fresh)
    saved = trainer.sync.state_dict()
    saved["step"] = trainer.done = STEPS
    part = saved["fragments"][0]
    part["state"] = carried._asdict()
    if codec:
        part["codec"] = carry(
            CodecState(**own["codec"]), CodecState(**part["codec"]), sources, comm.rank
        )._asdict()
    trainer.sync.load_state_dict(saved)
    landed = [trainer.step() for _ in range(4)]
    x, part = trainer.weights(), trainer.sync.state_dict()["fragments"][0]
    trainer.sync.finish()
    reports = [report for report in landed if report]
    return After(carried, type(fresh)(**part["state"]), part["codec"], x, reports, trainer.weights())


def check_apart(carried: Any, *others: Any) -> None:
    """Check that no tensor shares memory with one of the others, or is of another kind than in the last."""
    places = {tensor.data_ptr() for state in others for tensor in state}
    assert not places & {tensor.data_ptr() for tensor in carried}
    assert type(carried) is type(others[-1])
    for name, tensor, like in zip(carried._fields, carried, others[-1], strict=True):
        assert (tensor.dtype, tensor.shape) == (like.dtype, like.shape), name


@pytest.mark.parametrize(("method", "sources"), CHANGED)
def test_a_changed_group_trains_on(method: str, sources: list[int | None]) -> None:
    found = simulate(lambda comm: after(comm, method, sources), len(sources))
    for mine, source in zip(found, sources, strict=True):
        assert [report.step for report in mine.reports] == [8, 10]
        assert all(report.participants == len(sources) - len(report.distrusted) for report in mine.reports)
        assert all(tensor.isfinite().all() for tensor in (mine.x, mine.result))
        assert not any(tensor.isnan().any() for tensor in mine.moved)
        assert same(mine.result, found[0].result) or not METHODS[method].one_result
        for name, kind in kinds(mine.carried).items():
            if kind != "own":
                assert same(getattr(mine.carried, name), getattr(found[0].carried, name)), name
                assert same(getattr(mine.moved, name), getattr(found[0].moved, name)), name
            elif source is not None and name != "best":  # a particle may inherit one
                assert same(getattr(mine.carried, name), before(method)[source]["state"][name]), name


@every_method
def test_an_unchanged_group_keeps_its_state_bitwise(method: str) -> None:
    def train(comm: Comm) -> None:
        fresh = start(METHODS[method], comm)
        state = type(fresh)(**before(method)[comm.rank]["state"])
        carried = METHODS[method].carry(state, fresh, list(range(WORKERS)), comm.rank)
        assert same(carried, state)
        check_apart(carried, state, fresh)

    simulate(train, WORKERS)


@pytest.mark.parametrize("codec", [Int8(8), TopK(0.3)], ids=str)
@every_change
@pytest.mark.parametrize(
    "method",
    ["swarm", *(pytest.param(m, marks=pytest.mark.slow) for m in ("local-sgd", "pso-ps:historical", "easgd"))],
)
def test_a_changed_group_trains_on_with_a_codec(method: str, sources: list[int | None], codec: Codec) -> None:
    found = simulate(lambda comm: after(comm, method, sources, codec), len(sources))
    for mine in found:
        assert len(mine.reports) == 2
        assert mine.result.isfinite().all()
        assert mine.wire["residual"].isfinite().all()
        assert same([mine.wire["reference"], mine.result], [found[0].wire["reference"], found[0].result])


@pytest.mark.parametrize("sources", [[3, None], [0, 1, 2, 3, None, None]], ids=str)
def test_hosts_of_two_go_on_in_a_smaller_and_in_a_larger_group(sources: list[int | None]) -> None:
    """After the fourth round, in which all meet, the fifth is inside each host again."""
    found = simulate(lambda comm: after(comm, "hosts", sources), len(sources))
    assert [int(mine.moved.rounds) for mine in found] == [5] * len(sources)
    trained = [mine.x[: int(Flat(network()).layout.parameters)] for mine in found]
    for rank, x in enumerate(trained):
        assert [same(x, other) for other in trained] == [other // 2 == rank // 2 for other in range(len(trained))]


def test_a_group_that_does_not_fill_its_hosts_is_refused() -> None:
    with pytest.raises(UsageError, match="3 workers do not fill hosts of local_size=2"):
        simulate(lambda comm: after(comm, "hosts", [0, 1, 2]), 3)


# ---------------------------------------------------------------- by field


class Kinds(NamedTuple):
    """One field of each kind."""

    common: Shared
    mine: Own
    rows: PerWorker
    handed: Inherited
    derived: Derived
    place: Place


def filled(size: int, base: float, rank: int) -> Kinds:
    """A state whose every number tells where it is from; `place` has one element for each worker."""
    one = torch.tensor([base])
    rows = base + torch.arange(float(size)).repeat(2, 1).T
    return Kinds(one, one + rank, rows, one + 10 * rank, one + size, one.repeat(3))


@st.composite
def changes(draw: st.DrawFn) -> tuple[int, list[int | None]]:
    """The size of an old group, and the sources of a new one, in any order, with at least one survivor."""
    size = draw(st.integers(1, 5))
    stay = draw(st.lists(st.integers(0, size - 1), min_size=1, unique=True))
    sources: list[int | None] = [*stay, *[None] * draw(st.integers(0, 3))]
    return size, draw(st.permutations(sources))


@given(changes())
def test_each_kind_of_field(change: tuple[int, list[int | None]]) -> None:
    size, sources = change
    olds = [filled(size, 100.0, rank) for rank in range(size)]
    donor = max(s for s in sources if s is not None)
    for rank, source in enumerate(sources):
        found = carry(olds[donor if source is None else source], filled(len(sources), 500.0, rank), sources, rank)
        assert found.common.tolist() == [100.0]
        assert found.mine.tolist() == [500.0 + rank if source is None else 100.0 + source]
        assert found.rows.tolist() == [[500.0 + i if s is None else 100.0 + s] * 2 for i, s in enumerate(sources)]
        assert found.handed.tolist() == [100.0 + 10 * (donor if source is None else source)]
        assert found.derived.tolist() == [500.0 + len(sources)]
        assert found.place.tolist() == [100.0 if source == rank else 500.0] * 3


def test_a_field_of_another_shape_is_that_of_the_new_group() -> None:
    old, new = filled(3, 100.0, 0), filled(3, 500.0, 0)
    for name in ("common", "mine", "handed", "place"):
        found = carry(old._replace(**{name: torch.zeros(2)}), new, [0, 1, 2], 0)
        assert same(getattr(found, name), getattr(new, name))


class Bare(NamedTuple):
    """A state that does not say whose it is."""

    tensor: Tensor


def test_a_field_that_does_not_say_whose_it_is_is_refused() -> None:
    with pytest.raises(UsageError, match="expected each field to be annotated Shared, Own, PerWorker"):
        carry(Bare(torch.zeros(1)), Bare(torch.zeros(1)), [0], 0)


@pytest.mark.parametrize("sources", [[], [None, None], [0, 0], [-1, 0]])
def test_sources_without_a_survivor_or_with_one_twice_are_refused(sources: list[int | None]) -> None:
    state = filled(2, 0.0, 0)
    with pytest.raises(UsageError, match="expected ranks of the old group, each once and at least one"):
        carry(state, state, sources, 0)
    swarm = PSOPS().init(torch.zeros(3), LAYOUT, simulate(lambda comm: comm, 1)[0])
    with pytest.raises(UsageError, match="expected ranks of the old group"):
        PSOPS().carry(swarm, swarm, sources, 0)


def test_every_state_says_whose_its_fields_are() -> None:
    """A field without an annotation has no `__metadata__`, and fails here."""
    assert {type(when).__name__ for when in TRIGGERS} == {*swarmstep.when.__all__, "WarmupTrigger"} - {
        "NoState",
        "When",
    }
    states = [simulate(lambda comm, s=strategy: start(s, comm), 2)[0] for strategy in METHODS.values()]
    for state in [*states, *(when.init(LAYOUT, 3) for when in TRIGGERS)]:
        assert kinds(state).keys() == state._asdict().keys()
    assert kinds(CodecState(*[torch.zeros(1)] * 3)) == {
        "reference": "shared",
        "residual": "own",
        "shortfall": "place",
    }


# ---------------------------------------------------------------- triggers and codecs


def test_a_trigger_goes_on_from_a_survivors_and_weighs_for_the_new_size() -> None:
    when = GradientChange(threshold=1e9, window=4)
    olds = [when.init(LAYOUT, 4) for _ in range(4)]
    for rank, old in enumerate(olds):
        for step in range(1, 9):
            gradient = torch.full((3,), float(step + rank))
            when.due(old, Signal(step, 0, 0.1, lambda: 0.0, lambda g=gradient: g, None, LAYOUT))
    sources = [3, 1, None]
    found = [carry(olds[3 if s is None else s], when.init(LAYOUT, 3), sources, i) for i, s in enumerate(sources)]
    for state, source in zip(found, [3, 1, 3], strict=True):
        assert same([state.norms, state.changes], [olds[source].norms, olds[source].changes])
        weights = [0.97**age for age in (3, 2, 1, 0)]  # of 3 workers; 0.96 of 4
        torch.testing.assert_close(state.weights, torch.tensor(weights, dtype=torch.float64) / sum(weights))
        assert int(state.seen) == 8
        later = Signal(9, 0, 0.1, lambda: 0.0, lambda: torch.ones(3), None, LAYOUT)
        assert not when.due(state, later), "a newcomer's windows are full"


@given(changes(), st.integers(1, 9))
def test_all_ranks_of_a_changed_group_fire_alike(change: tuple[int, list[int | None]], steps: int) -> None:
    size, sources = change
    for when in (QuadraticRule(2, 0.5), Warmup(LocalSGD(when=QuadraticRule(3, 0.1)), 2).when, Every(3)):
        old = when.init(LAYOUT, size)
        signals = [Signal(n, 0, 0.1 / n, lambda: 0.0, lambda: torch.ones(3), None, LAYOUT) for n in range(1, 80)]
        for signal in signals[:steps]:
            when.due(old, signal)
        states = [carry(old, when.init(LAYOUT, len(sources)), sources, rank) for rank in range(len(sources))]
        for signal in signals[steps:]:
            expected = when.due(old, signal)
            assert [when.due(state, signal) for state in states] == [expected] * len(states)


def test_a_chunks_shortfall_stays_with_its_chunk() -> None:
    """Old rank 2 adds up another chunk as new rank 1; old rank 0 the same one, unless the chunks are longer."""
    olds = [
        CodecState(torch.full((9,), 7.0), torch.full((9,), float(r)), torch.full((3,), 10.0 + r)) for r in range(3)
    ]

    def found(sources: list[int | None], chunk: int) -> list[CodecState]:
        fresh = CodecState(torch.zeros(9), torch.zeros(9), torch.zeros(chunk))
        return [carry(olds[s or 0], fresh, sources, rank) for rank, s in enumerate(sources)]

    for wire, residual, shortfall in zip(found([0, 2, None], 3), [0.0, 2.0, 0.0], [10.0, 0.0, 0.0], strict=True):
        assert same(
            wire, CodecState(torch.full((9,), 7.0), torch.full((9,), residual), torch.full((3,), shortfall))
        )
    for wire in found([0, 2], 5):
        assert same(wire.shortfall, torch.zeros(5))


# ---------------------------------------------------------------- particles


class Particles(NamedTuple):
    """A whole swarm, as one who sees all of it would write it down."""

    velocity: list[float]
    best: list[float]
    losses: list[float]
    leader: list[float]
    owner: int


def drawn(draw: st.DrawFn, size: int, pso: PSOPS) -> Particles:
    """A swarm after some round: with neighbours="all" one leader for all, with historical bests the best one."""
    unique = st.lists(st.floats(1.0, 9.0), min_size=size, max_size=size, unique=True)
    losses, best = draw(unique), [100.0 + i for i in range(size)]
    owner = losses.index(min(losses)) if pso.best == "historical" else draw(st.integers(0, size - 1))
    if draw(st.booleans()) and draw(st.booleans()):
        losses, owner = [math.inf] * size, -1
    top = best[owner] if pso.best == "historical" and owner >= 0 else 300.0
    leader = [top] * size if pso.neighbours == "all" else [300.0 + i for i in range(size)]
    return Particles([200.0 + i for i in range(size)], best, losses, leader, owner)


def of_one(swarm: Particles, rank: int) -> PSOPSState:
    velocity, best, leader = (
        torch.full((3,), values[rank]) for values in (swarm.velocity, swarm.best, swarm.leader)
    )
    losses = torch.tensor(swarm.losses, dtype=torch.float64)
    return PSOPSState(velocity, best, losses, leader, torch.tensor(swarm.owner))


def oracle(swarm: Particles, sources: Sequence[int | None], donor: int, pso: PSOPS) -> Particles:
    """The swarm after the change: those who stay as they were, the new ones, and then the heritage."""
    alone = pso.neighbours == "ring"
    started = swarm.owner >= 0
    known = swarm.losses[swarm.owner] if started and not alone else math.inf
    velocity = [0.0 if s is None else swarm.velocity[s] for s in sources]
    best = [swarm.leader[donor] if s is None else swarm.best[s] for s in sources]
    losses = [known if s is None else swarm.losses[s] for s in sources]
    leader = [swarm.leader[donor if s is None else s] for s in sources]
    stay = [rank for rank, s in enumerate(sources) if s is not None]
    if not started:
        return Particles(velocity, best, losses, leader, -1)
    if swarm.owner in sources:
        return Particles(velocity, best, losses, leader, sources.index(swarm.owner))
    if alone:
        return Particles(velocity, best, losses, leader, min(stay, key=lambda rank: losses[rank]))
    if pso.best == "historical":
        best[stay[0]], losses[stay[0]] = swarm.leader[donor], swarm.losses[swarm.owner]
    return Particles(velocity, best, losses, leader, stay[0])


@given(st.data(), changes(), st.sampled_from(["round", "historical"]), st.sampled_from(["all", "ring"]))
def test_particles_after_a_change_are_those_of_the_oracle(
    data: st.DataObject, change: tuple[int, list[int | None]], best: str, neighbours: str
) -> None:
    size, sources = change
    pso = PSOPS(best=best, neighbours=neighbours)
    swarm = data.draw(st.composite(lambda draw: drawn(draw, size, pso))())
    donor = data.draw(st.sampled_from([s for s in sources if s is not None]))
    expected = oracle(swarm, sources, donor, pso)
    fresh = Particles([0.0], [400.0], [math.inf] * len(sources), [400.0], -1)
    methods: list[Strategy] = [pso, FedPSO()] if (best, neighbours) == ("round", "all") else [pso]
    for method in methods:
        for rank, source in enumerate(sources):
            own = of_one(swarm, donor if source is None else source)
            found = method.carry(own, of_one(fresh, 0), sources, rank)
            assert same(found, of_one(expected, rank))


def round_of(pso: PSOPS, states: list[PSOPSState], xs: list[float], losses: list[float], step: int) -> list[Any]:
    """Run one round and the end; return each worker's state and result."""

    def play(comm: Comm) -> tuple[PSOPSState, Tensor]:
        x, state = torch.full((3,), xs[comm.rank]), states[comm.rank]
        steps = torch.full((comm.size,), float(step), dtype=torch.float64)
        losses_ = torch.tensor(losses, dtype=torch.float64)
        roll = Roll(steps, steps, losses_, steps, torch.zeros(comm.size, 3), torch.zeros(comm.size, 0))
        signal = Signal(step, 0, 0.1, lambda: 0.0, lambda: x, None, LAYOUT)
        pso.apply(x, state, pso.exchange(x, state, signal, roll, comm), LAYOUT)
        return state, pso.result(x, state, comm)

    return simulate(play, len(xs))


def test_the_best_of_one_that_left_leads_until_a_better_one_is_found() -> None:
    pso = PSOPS(best="historical")
    starts = simulate(lambda comm: pso.init(torch.zeros(3), LAYOUT, comm), 3)
    olds = [state for state, _ in round_of(pso, starts, [1.0, 2.0, 3.0], [0.5, 0.7, 0.9], 1)]
    sources: list[int | None] = [1, 2, None]
    fresh = simulate(lambda comm: pso.init(torch.full((3,), 8.0), LAYOUT, comm), 3)
    states = [pso.carry(olds[s or 1], fresh[rank], sources, rank) for rank, s in enumerate(sources)]
    for state, result in round_of(pso, states, [4.0, 5.0, 6.0], [0.8, 0.8, 0.8], 2):
        assert (int(state.owner), state.best_losses.tolist()) == (0, [0.5, 0.8, 0.5])
        assert same([state.leader, result], [torch.full((3,), 1.0)] * 2)
    for state, result in round_of(pso, states, [4.0, 5.0, 6.0], [0.6, 0.6, 0.4], 3):
        assert (int(state.owner), state.best_losses.tolist()) == (2, [0.5, 0.6, 0.4])
        assert same([state.leader, result], [torch.full((3,), 6.0)] * 2)


def test_distrust_follows_the_worker_and_not_its_rank() -> None:
    swarm = InformedSwarm()
    old, fresh = (simulate(lambda comm: swarm.init(torch.zeros(3), LAYOUT, comm), w)[0] for w in (4, 4))
    old.standing[2], old.since[2], old.effect[2] = trust.HARMFUL, 40, -3.0
    old.passing[1], old.step[()] = trust.WILD, 64
    found = swarm.carry(old, fresh, [2, None, 3, 1], 0)
    assert [(d.rank, d.since) for d in swarm.distrusted(found)] == [(0, 40), (3, 64)]
    assert [(d.rank, d.since) for d in swarm.distrusted(old)] == [(1, 64), (2, 40)]
    gone = swarm.carry(old, simulate(lambda comm: swarm.init(torch.zeros(3), LAYOUT, comm), 2)[0], [0, 3], 1)
    assert swarm.distrusted(gone) == ()


def test_one_test_does_not_cost_a_new_worker_its_trust() -> None:
    """Its tests vary as one believes before there are any, so that many new ones do not make the test too sure."""
    swarm, sources = InformedSwarm(), [0, None, None, None]
    old, fresh = (simulate(lambda comm: swarm.init(torch.zeros(3), LAYOUT, comm), w)[0] for w in (2, 4))
    old.variance.fill_(0.5)
    old.tests.fill_(100)
    found = swarm.carry(old, fresh, sources, 3)
    verdict = trust.Verdict(
        found.effect, found.variance, found.groups, found.lowers, found.standing, int(found.tests)
    )
    q = trust.Outcomes(torch.tensor([0.1, 0.1, 0.1, -0.5]).double(), found.groups, found.lowers, 1.0)
    everybody = torch.ones(4, dtype=torch.bool)
    one = trust.judge(verdict, q, everybody, swarm.memory, swarm.margin)
    assert one.standing.tolist() == [trust.TRUSTED] * 4
    for _ in range(20):
        one = trust.judge(one, q, everybody, swarm.memory, swarm.margin)
    assert one.standing.tolist() == [trust.TRUSTED] * 3 + [trust.HARMFUL]
