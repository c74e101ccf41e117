"""The ledger: whatever happens to the workers, each pass shows each example once."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import same
from swarmstep.data.allocator import whole
from swarmstep.data.elastic_sampler import ElasticSampler
from swarmstep.data.sampler import Sampler
from swarmstep.data.sharding import shard
from swarmstep.errors import CheckpointError, UsageError


class Change(NamedTuple):
    """What happens after `steps` more steps."""

    steps: int
    behind: int  # steps since the last committed round, at most
    lost: int  # which old ranks, as bits
    newcomers: int
    turn: int  # by which the survivors' order is turned


CHANGES = st.lists(
    st.builds(
        Change, st.integers(0, 7), st.integers(0, 9), st.integers(0, 31), st.integers(0, 3), st.integers(0, 4)
    ),
    max_size=7,
)
SIZES = {"examples": st.integers(1, 23), "batch": st.integers(1, 9), "workers": st.integers(1, 5)}


class Worker:
    """Remembers its own draws as (step, example), as a process does that may be lost with them."""

    def __init__(self) -> None:
        self.draws: list[tuple[int, int]] = []


class Group:
    """Workers that draw what a ledger says, and what of their work counts."""

    def __init__(self, ledger: ElasticSampler, workers: int, step: int = 0, committed: int = 0) -> None:
        self.ledger, self.step, self.committed = ledger, step, committed
        self.workers = [Worker() for _ in range(workers)]
        self.everybody = list(self.workers)
        self.dealt = 0  # draws, what was rolled back included

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            for rank, worker in enumerate(self.workers):
                drawn = self.ledger.batch(rank, self.step).tolist()
                worker.draws += [(self.step, example) for example in drawn]
                self.dealt += len(drawn)

    def change(self, change: Change) -> None:
        """Let workers be lost, one survivor at least, and others come."""
        self.train(change.steps)
        self.committed = max(self.committed, self.step - change.behind)
        old = [rank for rank in range(len(self.workers)) if not change.lost >> rank & 1] or [0]
        old = old[change.turn % len(old) :] + old[: change.turn % len(old)]
        for rank, worker in enumerate(self.workers):
            if rank not in old:
                worker.draws = [draw for draw in worker.draws if draw[0] <= self.committed]
        newcomers = [Worker() for _ in range(change.newcomers)]
        self.ledger.deal(self.step, self.committed, [*old, *[None] * change.newcomers])
        self.workers = [self.workers[rank] for rank in old] + newcomers
        self.everybody += newcomers

    def counts(self, examples: int) -> list[int]:
        """Return how often each example was drawn by steps that count."""
        counted = Counter(example for worker in self.everybody for _, example in worker.draws)
        assert set(counted) <= {*range(examples)}
        return [counted[example] for example in range(examples)]


def check_all_passes(group: Group, examples: int, begun: int) -> None:
    """Train on until the passes `begun` at most are whole: each example then counts as often, or once more."""
    missing = max(0, begun * examples - sum(group.counts(examples)))
    group.train(-(-missing // group.ledger.batch(0, group.step + 1).numel() // len(group.workers)))
    for _ in range(3):
        counts = group.counts(examples)
        assert min(counts) == sum(counts) // examples
        assert max(counts) <= min(counts) + 1
        group.train(1)


@given(**SIZES, seed=st.integers(0, 9), changes=CHANGES)
def test_each_pass_shows_each_example_once(
    examples: int, batch: int, workers: int, seed: int, changes: list[Change]
) -> None:
    group = Group(ElasticSampler(examples, batch, seed, workers), workers)
    for i in range(len(changes) + 1):  # after each change a group trains on, as if nothing more happened
        played = play(examples, batch, workers, seed, changes[:i])
        check_all_passes(played, examples, played.dealt // examples + 1)
    for change in changes:
        group.change(change)
    assert group.ledger.workers == len(group.workers)
    assert group.ledger.step == (group.step if changes else 0)


def play(examples: int, batch: int, workers: int, seed: int, changes: list[Change]) -> Group:
    group = Group(ElasticSampler(examples, batch, seed, workers), workers)
    for change in changes:
        group.change(change)
    return group


@given(examples=SIZES["examples"], workers=SIZES["workers"], changes=CHANGES)
def test_no_pass_shows_an_example_twice_but_for_what_was_rolled_back(
    examples: int, workers: int, changes: list[Change]
) -> None:
    """With single draws the pass of each is known: per pass nothing counts twice, at no moment."""
    group = Group(ElasticSampler(examples, 1, 3, workers), workers)
    passes: dict[tuple[int, int], int] = {}  # of (worker, step)

    def note(steps: int) -> None:
        for step in range(group.step + 1, group.step + steps + 1):
            for rank, worker in enumerate(group.workers):
                passes[id(worker), step] = group.ledger.pass_of(rank, step)

    for change in [*changes, Change(9, 0, 0, 0, 0)]:
        note(change.steps)
        group.change(change)
        counting = [
            (passes[id(worker), step], example) for worker in group.everybody for step, example in worker.draws
        ]
        assert len({*counting}) == len(counting)


@given(**SIZES, changes=CHANGES, cut=st.integers(0, 6))
def test_a_saved_ledger_goes_on_alike(
    examples: int, batch: int, workers: int, changes: list[Change], cut: int
) -> None:
    straight = play(examples, batch, workers, 4, changes)
    resumed = play(examples, batch, workers, 4, changes[:cut])
    saved = resumed.ledger.state_dict()
    resumed.ledger = ElasticSampler(examples, batch, 4, 1)
    resumed.ledger.load_state_dict(saved)
    for change in changes[cut:]:
        resumed.change(change)
    assert same(resumed.ledger.state_dict(), straight.ledger.state_dict())
    for group in (straight, resumed):
        group.train(3)
    assert [w.draws for w in resumed.everybody] == [w.draws for w in straight.everybody]


@given(
    examples=st.integers(1, 30),
    batch=st.integers(1, 12),
    old=st.integers(1, 5),
    new=st.integers(1, 6),
    step=st.integers(0, 12),
    behind=st.integers(0, 5),
    changes=CHANGES,
)
def test_it_takes_over_from_static_shards(
    examples: int, batch: int, old: int, new: int, step: int, behind: int, changes: list[Change]
) -> None:
    old, behind = min(old, examples), min(behind, step)
    shards = shard(torch.zeros(examples, dtype=torch.int64), "iid", old, 6, None)
    ledger = ElasticSampler.after(shards, batch, 6, step, new, examples, step - behind)
    group = Group(ledger, new, step, step - behind)
    lost = [Worker() for _ in range(max(0, old - new))]
    group.everybody += lost
    for rank, worker in enumerate([*group.workers[:old], *lost]):
        kept = step if rank < new else step - behind
        sampler = Sampler(shards[rank], batch, 6, rank)
        worker.draws = [(s, i) for s in range(1, kept + 1) for i in sampler.batch(s).indices.tolist()]
    for change in changes:
        group.change(change)
    begun = step * batch // min(map(len, shards)) + 1  # a small shard may be passes ahead of the others
    check_all_passes(group, examples, begun + group.dealt // examples + 1)


def split(total: int, weights: list[int]) -> list[int]:
    """Return shares of sum `total` in proportion to weights, each at least 1 where there is enough."""
    shares = whole(total, [total * w / sum(weights) for w in weights])
    assert sum(shares) == total
    return shares


@given(
    examples=st.integers(1, 40),
    batch=st.integers(1, 6),
    length=st.integers(1, 4),
    rounds=st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=8, max_size=8), st.integers(0, 31), st.integers(0, 2)),
        min_size=1,
        max_size=8,
    ),
    cut=st.integers(0, 7),
)
def test_with_shares_that_change_in_each_round_nothing_is_lost_or_doubled(
    examples: int, batch: int, length: int, rounds: list[tuple[list[int], int, int]], cut: int
) -> None:
    """In each round every worker draws its own; some are lost in it, some come after it, and the shares change.

    What counts are a beginning of the passes, but for what lost workers have drawn, which comes next.
    """
    ledger, workers, step = ElasticSampler(examples, batch, 2, 3), 3, 0
    counting: Counter[int] = Counter()

    def shares(of: int, weights: list[int]) -> list[int]:
        return split(of * batch * length, weights[:of])

    ledger.deal(0, 0, range(3), shares(3, [1] * 8), length)
    for number, (weights, lost, newcomers) in enumerate(rounds):
        if number == cut:
            saved, ledger = ledger.state_dict(), ElasticSampler(examples, batch, 2, 1)
            ledger.load_state_dict(saved)
        drawn = [ledger.batch(rank, step + 1).tolist() for rank in range(workers)]
        assert all(ledger.batch(rank, step + length).tolist() == drawn[rank] for rank in range(workers))
        assert sum(map(len, drawn)) == workers * batch * length
        step += length
        stay = [rank for rank in range(workers) if not lost >> rank & 1] or [0]
        if len(stay) < workers:  # the round failed, and is taken again without them
            ledger.deal(step, step - length, stay, shares(len(stay), weights), length)
        counting.update(example for rank in stay for example in drawn[rank])
        workers = len(stay)
        ledger.deal(step, step, range(workers), shares(workers, weights[::-1]), length)
        if newcomers and workers < 5:
            ledger.deal(
                step, step, [*range(workers), *[None] * newcomers], shares(workers + newcomers, weights), length
            )
            workers += newcomers
    for _ in range(2 * examples):  # until what was lost has come again
        counting.update(i for rank in range(workers) for i in ledger.batch(rank, step + 1).tolist())
        step += length
        counts = [counting[example] for example in range(examples)]
        if min(counts) == sum(counts) // examples and max(counts) <= min(counts) + 1:
            break
    else:
        raise AssertionError(counts)


def test_shares_that_do_not_fit_are_refused() -> None:
    ledger = ElasticSampler(50, 4, 0, 2)
    for wrong in ([1, 14], [8], [-1, 17]):
        with pytest.raises(UsageError, match="deal: expected 2 shares of sum 16, or none"):
            ledger.deal(0, 0, [0, 1], wrong, 2)
    ledger.deal(0, 0, [0, 1], [12, 4], 2)
    with pytest.raises(UsageError, match="expected the end of a unit of 2 steps after step 0, found 3"):
        ledger.deal(3, 3, [0, 1])


def test_what_a_lost_worker_drew_is_dealt_first() -> None:
    ledger = ElasticSampler(100, 5, 0, 2)
    gone = [set(ledger.batch(1, step).tolist()) for step in (1, 2, 3, 4)]
    ledger.deal(4, 2, [0])
    again = {*ledger.batch(0, 5).tolist(), *ledger.batch(0, 6).tolist()}
    assert again == gone[2] | gone[3]
    assert ledger.pass_of(0, 5) == 0
    rest = [i for step in range(7, 7 + 12) for i in ledger.batch(0, step).tolist()]
    assert len({*rest}) == 60
    assert ledger.pass_of(0, 19) == 1


def test_a_second_loss_before_the_round_is_committed_returns_what_was_drawn_before_the_first() -> None:
    ledger = ElasticSampler(100, 5, 0, 3)
    gone = {i for rank in (1, 2) for step in (1, 2) for i in ledger.batch(rank, step).tolist()}
    ledger.deal(2, 0, [0, 1])
    ledger.deal(2, 0, [0])
    assert {i for step in range(3, 7) for i in ledger.batch(0, step).tolist()} == gone


def test_passes_seeds_and_ranks_differ() -> None:
    ledger = ElasticSampler(50, 25, 0, 2)
    orders = [ledger.batch(0, 1), ledger.batch(1, 1), ledger.batch(0, 2), ElasticSampler(50, 25, 1, 2).batch(0, 1)]
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert orders[0].dtype == torch.int64
    torch.manual_seed(5)
    assert ledger.batch(0, 1).equal(orders[0])


@pytest.mark.parametrize("numbers", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_nothing_to_draw_is_refused(numbers: tuple[int, int, int]) -> None:
    examples, batch, workers = numbers
    with pytest.raises(UsageError, match="at least 1, found"):
        ElasticSampler(examples, batch, 0, workers)


@pytest.mark.parametrize(("rank", "step"), [(0, 3), (0, 0), (2, 4), (-1, 4)])
def test_a_step_before_the_deal_or_a_foreign_rank_is_refused(rank: int, step: int) -> None:
    ledger = ElasticSampler(9, 2, 0, 3)
    ledger.deal(3, 3, [0, 2])
    for call in (ledger.batch, ledger.pass_of):
        with pytest.raises(UsageError, match=r"expected a rank of 0..1 and a step after 3"):
            call(rank, step)


@pytest.mark.parametrize(
    ("step", "committed", "sources"),
    [
        (3, 3, [0]),
        (5, 6, [0]),
        (5, 1, [0]),
        (5, 5, []),
        (5, 5, [0, 0]),
        (5, 5, [2]),
        (5, 5, [-1, 0]),
    ],
)
def test_a_deal_that_does_not_fit_changes_nothing(step: int, committed: int, sources: list[int | None]) -> None:
    ledger = ElasticSampler(9, 2, 0, 3)
    ledger.deal(4, 2, [0, 2])
    before = ledger.state_dict()
    with pytest.raises(UsageError, match="deal: expected"):
        ledger.deal(step, committed, sources)
    assert same(ledger.state_dict(), before)


def full() -> ElasticSampler:
    """A ledger with something in all its fields."""
    ledger = ElasticSampler(9, 2, 0, 3)
    ledger.deal(4, 2, [0, 2])
    return ledger


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("examples", 8, r"ledger.examples: expected 9 \(this run\), found 8"),
        ("batch", 1, "ledger.batch: expected 2"),
        ("seed", 1, "ledger.seed: expected 0"),
        ("workers", 0, "ledger.workers: expected a whole number of at least 1, found 0"),
        ("step", 4.0, "ledger.step: expected a whole number"),
        ("step", True, "ledger.step: expected a whole number"),
        ("committed", 5, "ledger.committed: expected at most 4, the step, found 5"),
        ("place", -1, "ledger.place: expected a whole number"),
        ("returned", [], r"ledger.returned: expected int64 of shape \[n, 2\]"),
        ("returned", torch.zeros(1, 2), r"ledger.returned: expected int64 of shape \[n, 2\]"),
        ("returned", torch.tensor([[0, 9]]), "ledger.returned: a number is out of range"),
        ("drawn", torch.zeros(1, 2, dtype=torch.int64), r"ledger.drawn: expected int64 of shape \[n, 4\]"),
        ("drawn", torch.tensor([[2, 3, 0, 0]]), "ledger.drawn: a number is out of range"),
        ("drawn", torch.tensor([[0, 2, 0, 0]]), "ledger.drawn: a number is out of range"),
    ],
)
def test_a_foreign_state_is_refused_whole(field: str, value: Any, said: str) -> None:
    ledger = ElasticSampler(9, 2, 0, 1)
    before = ledger.state_dict()
    for saved in (full().state_dict() | {field: value}, {k: v for k, v in before.items() if k != field}):
        with pytest.raises(CheckpointError, match=said if field in saved else f"{field}: missing"):
            ledger.load_state_dict(saved)
        assert same(ledger.state_dict(), before)


def test_what_was_saved_stays_apart() -> None:
    ledger, other = full(), ElasticSampler(9, 2, 0, 1)
    saved = ledger.state_dict()
    kept = full().state_dict()
    assert len(saved["returned"])
    assert len(saved["drawn"])
    other.load_state_dict(saved)
    for each in (ledger, other):
        each.deal(7, 3, [1, None])
        assert same(saved, kept)


@pytest.mark.parametrize(("spec", "count"), [("seldp", 3), ("iid", 2)])
def test_only_shards_that_hold_each_example_once_can_be_taken_over(spec: str, count: int) -> None:
    shards = shard(torch.arange(12) % 4, spec, 3, 0, 4)
    with pytest.raises(UsageError, match="shards: expected each of 12 examples in one of them"):
        ElasticSampler.after(shards[:count], 2, 0, 5, 2, 12)
