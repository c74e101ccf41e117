"""Coded vectors: the two-stage mean against NumPy, error feedback, bytes, failures, and every end alike."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from codec_oracle import Floats, oracle
from coded_jobs import drifted, nobody, play, reused, split_up, start, verbs, weights_of
from helpers import VARIANTS, bits, same
from swarmstep import Comm, Every, Group, Metered, Options, Synchronizer, simulate
from swarmstep.comm.codecs import Bfloat16, Codec, Int4, Int8, NMCodec, TopK
from swarmstep.comm.coded import Coded
from swarmstep.comm.error_feedback import CodecState
from swarmstep.comm.vector_codec import chunk_length
from swarmstep.errors import CommError, UsageError
from whole_runs import KINDS, fast_ones
from wrapped import Wrapped

CODECS: list[Codec] = [Bfloat16(), Int8(), Int8(block=8), Int4(), Int4(block=6), TopK(0.1)]
BARE: list[Codec] = [Bfloat16(), Int8(), Int8(block=8)]
SIZES = [1, 2, 3, 5, 17]


def lossy(codec: Codec, x: Floats) -> Floats:
    return oracle(codec, x)[1]


class Model:
    """What the docstring of `Coded.mean` says, for all ranks at once, in NumPy."""

    def __init__(self, codec: Codec, n: int, size: int, referenced: bool) -> None:
        self.codec, self.n, self.size, self.referenced = codec, n, size, referenced
        block = (
            codec.block if isinstance(codec, (Int8, Int4)) else 8 * codec.m if isinstance(codec, NMCodec) else 1
        )
        self.chunk = block * math.ceil(n / (size * block))
        self.reference = start(n) if referenced else np.zeros(n, np.float32)
        self.residuals = np.zeros((size, n), np.float32)
        self.shortfalls = np.zeros((size, self.chunk), np.float32)

    def chunks(self, x: Floats) -> Floats:
        return np.append(x, np.zeros(self.size * self.chunk - self.n, np.float32)).reshape(self.size, self.chunk)

    def mean(self, xs: Sequence[Floats], weights: Sequence[float]) -> tuple[Floats, float, list[Floats]]:
        """Return the mean, the sum of weights, and what the others were given for each rank's x."""
        decoded, sent = [], list(xs)
        for rank in np.flatnonzero(weights):
            delta = (xs[rank] - self.reference) + self.residuals[rank]
            parts = np.stack([lossy(self.codec, chunk) for chunk in self.chunks(delta)])
            decoded.append((np.float32(weights[rank]), parts))
            flat = parts.reshape(-1)[: self.n]
            sent[rank] = self.reference + flat
            if self.referenced:
                self.residuals[rank] = delta - flat
        total, result = np.float32(0), np.zeros((self.size, self.chunk), np.float32)
        for weight, parts in decoded:
            total += weight
            result += weight * parts
        result = result / total + self.shortfalls
        coded = np.stack([lossy(self.codec, chunk) for chunk in result])
        if self.referenced:
            self.shortfalls = result - coded
        return self.reference + coded.reshape(-1)[: self.n], float(total), sent


def check_play(codec: Codec, n: int, weights: list[list[float]], referenced: bool, found: list[Any]) -> None:
    size = len(weights[0])
    model, common = Model(codec, n, size, referenced), start(n)
    for r, row in enumerate(weights):
        xs = [drifted(common, r, rank) for rank in range(size)]
        mean, total, sent = model.mean(xs, row)
        for rank in range(size):
            found_mean, found_total, found_sent, found_state = found[rank][r]
            assert bits(found_mean) == bits(found[0][r][0]), "the ranks disagree"
            assert np.array_equal(found_mean.numpy(), mean)
            assert found_total == total
            if row[rank]:
                assert np.array_equal(found_sent.numpy(), sent[rank])
            else:
                assert found_sent.isnan().all()
            if referenced:
                expected = [mean, model.residuals[rank], model.shortfalls[rank]]
                assert all(np.array_equal(a.numpy(), b) for a, b in zip(found_state, expected, strict=True))
            else:
                assert [len(t) for t in found_state] == [0, 0, 0]
        common = mean
        if referenced:
            model.reference = mean


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("size", fast_ones([3], SIZES[1:]))
@pytest.mark.parametrize("n", [3, 1000])
def test_rounds_with_a_reference(codec: Codec, size: int, n: int) -> None:
    weights = weights_of(size, 4)
    found = simulate(lambda comm: play(comm, codec, n, weights, True), size)
    check_play(codec, n, weights, True, found)


@pytest.mark.parametrize(("codec", "n"), [(NMCodec(2, 4), 1000), (NMCodec(1, 8), 72)], ids=str)
def test_rounds_of_n_in_m(codec: NMCodec, n: int) -> None:
    weights = weights_of(3, 4)
    check_play(codec, n, weights, True, simulate(lambda comm: play(comm, codec, n, weights, True), 3))


def in_tensors(comm: Comm) -> list[Tensor]:
    """Code tensors of 3, 8 and 2 elements, in groups of 4."""
    x = torch.tensor([9.0, 8.0, 7.0, 1.0, 2.0, 3.0, 4.0, 8.0, 7.0, 6.0, 5.0, 1.0, 2.0])
    coded = Coded(comm, NMCodec(2, 4), torch.zeros(13), shapes=[(3,), (2, 4), (2,)])
    return [coded.mean(x)[0], coded.sent(x), coded.gather(x)[1], coded.broadcast(x, 0)]


def test_groups_do_not_cross_tensors() -> None:
    expected = torch.tensor([9.0, 8.0, 0.0, 0.0, 0.0, 3.0, 4.0, 8.0, 7.0, 0.0, 0.0, 1.0, 2.0])
    for found in simulate(in_tensors, 3):
        assert all(torch.equal(tensor, expected) for tensor in found)


@pytest.mark.parametrize("codec", BARE, ids=str)
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("n", [3, 1000])
def test_rounds_without_a_reference(codec: Codec, size: int, n: int) -> None:
    weights = weights_of(size, 3)
    found = simulate(lambda comm: play(comm, codec, n, weights, False), size)
    check_play(codec, n, weights, False, found)


@given(st.sampled_from(CODECS), st.integers(1, 700), st.integers(2, 6), st.integers(0, 2**32), st.booleans())
def test_any_length_and_weights(codec: Codec, n: int, size: int, seed: int, referenced: bool) -> None:
    referenced = referenced or codec.needs_reference
    rng = np.random.default_rng(seed)
    weights = [row.tolist() for row in rng.choice([0.0, 1.0, 1.0, 0.7], size=(2, size)) if row.any()] or [
        [1.0] * size
    ]
    found = simulate(lambda comm: play(comm, codec, n, weights, referenced), size)
    check_play(codec, n, weights, referenced, found)


@pytest.mark.parametrize("codec", [Int8(), Int4(), TopK(0.03), Bfloat16()], ids=str)
def test_long_chunks_are_coded_in_pieces(codec: Codec) -> None:
    weights = [[1.0, 0.5], [1.0, 1.0]]
    found = simulate(lambda comm: play(comm, codec, 300_001, weights, True), 2)
    check_play(codec, 300_001, weights, True, found)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("referenced", [True, False])
def test_vectors_arrive_as_their_codes_say(codec: Codec, referenced: bool) -> None:
    if codec.needs_reference and not referenced:
        return
    size = 3
    reference = start(100) + np.float32(1) if referenced else np.zeros(100, np.float32)

    def through(x: Floats) -> Floats:
        return lossy(codec, x - reference) + reference

    xs = [drifted(start(100), 0, rank) for rank in range(size)]
    found = simulate(lambda comm: verbs(comm, codec, referenced), size)
    for rank, (gathered, sent, permuted, rows) in enumerate(found):
        assert np.array_equal(gathered.numpy(), np.stack([through(x) for x in xs]).reshape(size, 4, 25))
        assert np.array_equal(sent.numpy(), through(xs[1]).reshape(4, 25))
        assert np.array_equal(permuted.numpy(), through(xs[(rank + 1) % size]).reshape(4, 25))
        assert np.array_equal(rows.numpy(), np.stack([through(x + np.float32(rank)) for x in xs]))


def others(comm: Comm, wrapped: bool, like: Tensor, referenced: bool) -> list[Any]:
    """Send what is not coded; through a Coded, or not."""
    end = Coded(comm, Int8(block=4), like, referenced=referenced) if wrapped else comm
    found: list[Any] = []
    xs = [torch.randn(10, dtype=torch.float64, generator=torch.Generator().manual_seed(comm.rank))]
    if referenced:
        xs += [torch.randn(n, generator=torch.Generator().manual_seed(comm.rank)) for n in (9, 11)]
    source = list(range(comm.size))[::-1]
    for x in [*xs, torch.arange(10) + comm.rank]:
        found += [end.gather(x), end.broadcast(x, 0), end.permute(x, source)]
        found += [end.mean(x, 0.3), end.sent(x)] if x.is_floating_point() else []
        found.append(end.all_to_all(x.repeat(comm.size).view(comm.size, -1)))
    return found


@pytest.mark.parametrize("referenced", [True, False])
def test_control_values_and_other_lengths_pass_through(referenced: bool) -> None:
    like = torch.zeros(10)
    plain, found = (simulate(lambda comm: others(comm, w, like, referenced), 3) for w in (False, True))  # noqa: B023
    assert same(found, plain)


def test_one_worker_alone_codes_nothing() -> None:
    def train(comm: Comm) -> None:
        metered = Metered(comm)
        coded = Coded(metered, TopK(0.01), torch.zeros(50))
        x = torch.from_numpy(start(50))
        mean, total = coded.mean(x, 2.0)
        assert same(mean, x)
        assert total == 2.0
        for found in (coded.broadcast(x, 0), coded.permute(x, [0]), coded.gather(x)[0], coded.sent(x)):
            assert same(found, x)
        coded.commit(mean)
        assert same(coded.state.reference, x)
        assert metered.traffic.sent == 0

    simulate(train, 1)


def test_tensors_of_another_device_pass_through() -> None:
    def train(comm: Comm) -> None:
        coded = Coded(comm, Int8(), torch.zeros(4), referenced=False)
        assert coded.gather(torch.zeros(4, device="meta")).device.type == "meta"

    simulate(train, 2)


def test_sent_knows_the_last_vector_only() -> None:
    def train(comm: Comm) -> None:
        coded = Coded(comm, Int8(), torch.zeros(4), referenced=False)
        x, y = torch.from_numpy(start(20)), torch.from_numpy(start(10))
        coded.mean(x)
        assert same(coded.sent(y), y)
        assert not same(coded.sent(x), x)
        coded.mean(y)
        assert same(coded.sent(x), x)

    simulate(train, 2)


def feedback(comm: Comm, codec: Codec, rounds: int, remember: bool) -> list[tuple[Floats, Floats, CodecState]]:
    """Move by the same step each round; return what was delivered and what was due, summed so far."""
    steps = [np.random.default_rng([5, rank]).normal(size=60) ** 3 for rank in range(comm.size)]
    coded = Coded(comm, codec, torch.zeros(60))
    due, found = np.zeros(60), []
    for _ in range(rounds):
        common = coded.state.reference.clone()
        mean, _ = coded.mean(common + torch.from_numpy(steps[comm.rank]).float())
        coded.commit(mean)
        if not remember:
            coded.state.residual.zero_()
            coded.state.shortfall.zero_()
        due = due + np.mean(steps, 0)
        found.append((coded.state.reference.double().numpy(), due, CodecState(*(t.clone() for t in coded.state))))
    return found


@pytest.mark.parametrize("codec", [Int8(block=20), Int4(block=20), TopK(0.2)], ids=str)
def test_error_feedback_delivers_everything_in_the_end(codec: Codec) -> None:
    size, rounds = 3, 60
    found = simulate(lambda comm: feedback(comm, codec, rounds, True), size)
    lags = []
    for r in range(rounds):
        delivered, due, _ = found[0][r]
        held = np.mean([found[rank][r][2].residual.double().numpy() for rank in range(size)], 0)
        held += np.concatenate([found[rank][r][2].shortfall.double().numpy() for rank in range(size)])[:60]
        # Nothing is lost: what was due is delivered or held back, up to the rounding of float32 sums.
        assert np.allclose(delivered + held, due, atol=1e-5 * (1 + np.abs(due).max()))
        lags.append(np.abs(delivered - due).max())
    forgetful = simulate(lambda comm: feedback(comm, codec, rounds, False), size)[0]
    drift = [np.abs(delivered - due).max() for delivered, due, _ in forgetful]
    assert max(lags[rounds // 2 :]) <= 1.5 * max(lags[: rounds // 2])  # what is held back does not grow
    assert drift[-1] > 1.9 * drift[rounds // 2 - 1]  # without feedback it grows like the rounds
    assert drift[-1] > 4 * max(lags[rounds // 2 :])


def traffic(comm: Comm, codec: Codec, n: int, referenced: bool) -> dict[str, tuple[int, int]]:
    metered = Metered(comm)
    coded = Coded(metered, codec, torch.zeros(n), referenced=referenced)
    x, found = torch.ones(n), {}
    for name, call in {
        "mean": lambda: coded.mean(x),
        "absent": lambda: coded.mean(x, float(comm.rank > 0)),
        "gather": lambda: coded.gather(x),
        "broadcast": lambda: coded.broadcast(x, 0),
        "permute": lambda: coded.permute(x, [*range(1, comm.size), 0]),
    }.items():
        with metered.counting() as moved:
            call()
        found[name] = moved.sent, moved.received
    return found


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize(("n", "size"), [(3, 5), (1000, 4), (10_000, 3)])
def test_traffic_is_that_of_the_formula(codec: Codec, n: int, size: int) -> None:
    def coded_bytes(m: int) -> int:
        if isinstance(codec, Bfloat16):
            return 2 * m
        if isinstance(codec, TopK):
            return 4 + 5 * max(1, math.ceil(codec.fraction * m))
        return math.ceil(m / (1 if isinstance(codec, Int8) else 2)) + 4 * math.ceil(m / codec.block)

    block = codec.block if isinstance(codec, (Int8, Int4)) else 1
    chunk = math.ceil(math.ceil(n / size) / block) * block
    assert chunk_length(codec, n, size) == chunk
    mean = (size - 1) * (4 + 2 * coded_bytes(chunk))
    whole = coded_bytes(n)
    for referenced in (True, False)[: 1 if codec.needs_reference else 2]:
        for rank, found in enumerate(simulate(lambda comm: traffic(comm, codec, n, referenced), size)):  # noqa: B023
            assert found["mean"] == found["absent"] == (mean, mean)
            assert found["gather"] == ((size - 1) * whole,) * 2
            assert found["broadcast"] == (whole * (rank < size - 1), whole * (rank > 0))
            assert found["permute"] == (whole, whole)


class Faulty(Wrapped):
    """A group whose call number `fail` (from 1) of a verb fails on all ranks."""

    def __init__(self, inner: Group, fail: int) -> None:
        super().__init__(inner)
        self.fail, self.calls = fail, 0

    def before(self, verb: str, elements: int) -> None:
        assert verb not in ("mean", "split"), "a coded mean needs neither"
        self.calls += 1
        if self.calls == self.fail:
            raise CommError("struck")


def interrupted(comm: Comm, codec: Codec, fail: int) -> tuple[list[Any], int]:
    """Three rounds of two means, a broadcast and a permute; a round that fails is done again."""
    faulty = Faulty(comm, fail)
    coded = Coded(faulty, codec, torch.zeros(40))
    failures, r, found = 0, 0, []
    while r < 3:
        before = [t.clone() for t in coded.state]
        common = coded.state.reference.numpy().copy()
        x, y = (torch.from_numpy(drifted(common, r, comm.rank + 10 * k)) for k in range(2))
        coded.discard()
        try:
            coded.mean(y)
            sent = coded.broadcast(x, 1)
            moved = coded.permute(x, [*range(1, comm.size), 0])
            mean, _ = coded.mean(x)
        except CommError:
            failures += 1
            assert same([*coded.state], before), "a round that failed changed the state"
            coded.discard()
            assert same(coded.sent(x), x)
            continue
        given = coded.sent(x)
        coded.commit(mean)
        found.append((mean, sent, moved, given, [t.clone() for t in coded.state]))
        r += 1
    return found, failures


@pytest.mark.parametrize("codec", [Int8(block=8), pytest.param(TopK(0.1), marks=pytest.mark.slow)], ids=str)
def test_a_failure_changes_nothing(codec: Codec) -> None:
    expected = simulate(lambda comm: interrupted(comm, codec, 0), 3)
    for fail in range(1, 13):
        for rank, (found, failures) in enumerate(simulate(lambda comm: interrupted(comm, codec, fail), 3)):  # noqa: B023
            assert failures == 1
            assert same(found, expected[rank][0])


def test_a_mean_that_fails_stages_nothing() -> None:
    """The second mean of a round fails between its two collectives: a commit then keeps the old residual."""

    def train(comm: Comm) -> None:
        coded = Coded(Faulty(comm, 4), Int8(), torch.zeros(40))
        x = torch.from_numpy(start(40))
        coded.mean(x)
        with pytest.raises(CommError, match="struck"):
            coded.mean(2 * x)
        assert same(coded.sent(x), x)
        coded.commit(x)
        assert not coded.state.residual.any()
        assert not coded.state.shortfall.any()
        assert same(coded.state.reference, x)

    simulate(train, 2)


def test_the_last_mean_of_a_round_counts() -> None:
    def train(comm: Comm) -> list[Tensor]:
        first, second = (torch.from_numpy(drifted(start(40), r, comm.rank)) for r in range(2))
        ends = [Coded(comm, Int4(block=8), torch.zeros(40)) for _ in range(2)]
        ends[0].mean(first)
        for coded in ends:
            mean, _ = coded.mean(second, float(comm.rank != 1))
            assert same(coded.sent(second), second) == (comm.rank == 1)
            coded.commit(mean)
        assert same([*ends[0].state], [*ends[1].state])
        assert bool(ends[0].state.residual.any()) == (comm.rank != 1)
        tensors = [*ends[0].state]
        ends[0].mean(first)
        ends[0].commit(first)
        assert all(a is b for a, b in zip(tensors, ends[0].state, strict=True)), "changed in place"
        return [t.clone() for t in ends[0].state]

    simulate(train, 3)


def test_a_mean_of_nobody() -> None:
    expected = [("mean: every rank had weight 0, so there is nothing to average", True)] * 3
    assert simulate(nobody, 3) == expected


def test_the_mean_is_that_of_what_was_sent() -> None:
    """With the reference at zero, `sent` is what the first stage decodes to; only the second is left."""
    weights = [1.0, 0.5, 3.0]

    def train(comm: Comm) -> tuple[Floats, Floats]:
        coded = Coded(comm, Int8(block=8), torch.zeros(48))
        x = torch.from_numpy(drifted(start(48), 0, comm.rank))
        mean, _ = coded.mean(x, weights[comm.rank])
        return mean.numpy(), coded.sent(x).numpy()

    found = simulate(train, 3)
    total = np.zeros(48, np.float32)
    for (_, sent), weight in zip(found, weights, strict=True):
        total += sent * np.float32(weight)
    assert np.array_equal(lossy(Int8(block=8), total / np.float32(4.5)), found[0][0])


def test_a_checkpoint_is_the_three_tensors() -> None:
    def train(comm: Comm) -> None:
        coded = Coded(comm, Int4(block=8), torch.zeros(40))
        for r in range(4):
            x = torch.from_numpy(drifted(coded.state.reference.numpy().copy(), r, comm.rank))
            fresh = Coded(comm, Int4(block=8), torch.zeros(40))
            for mine, saved in zip(fresh.state, coded.state, strict=True):
                mine.copy_(saved)
            mean, _ = coded.mean(x)
            assert same(fresh.mean(x)[0], mean)
            coded.commit(mean)

    simulate(train, 2)


def test_parts_code_without_a_reference() -> None:
    found = simulate(split_up, 4)
    xs = [drifted(start(12), 0, rank) for rank in range(4)]
    for rank, (mean, rows, lengths) in enumerate(found):
        pair = [xs[rank // 2 * 2], xs[rank // 2 * 2 + 1]]
        model = Model(Int8(block=4), 12, 2, False)
        assert np.array_equal(mean.numpy(), model.mean(pair, [1.0, 1.0])[0])
        assert np.array_equal(rows.numpy(), np.stack([lossy(Int8(block=4), x[:5]) for x in pair]))
        assert lengths == [0, 0, 0]

    def refused(comm: Comm) -> None:
        with pytest.raises(UsageError, match="needs a reference"):
            Coded(comm, Int4(), torch.zeros(4)).split(0)

    simulate(refused, 2)


def test_memory_that_is_used_again() -> None:
    simulate(reused, 2)


def test_the_clock_is_that_of_the_group() -> None:
    class Clocked(Metered):
        def clock(self) -> float:
            return 7.0

    assert simulate(lambda comm: Coded(Clocked(comm), Int8(), torch.zeros(4)).clock(), 2) == [7.0, 7.0]


def test_misuse_is_named() -> None:
    def train(comm: Comm) -> None:
        for codec in (Int4(), TopK(0.1)):
            with pytest.raises(UsageError, match="needs a reference"):
                Coded(comm, codec, torch.zeros(4), referenced=False)
        with pytest.raises(UsageError, match="codecs need a float32 vector"):
            Coded(comm, Int8(), torch.zeros(4, dtype=torch.float64))
        coded = Coded(comm, Int8(), torch.zeros(4))
        for weight in (-1.0, math.nan, math.inf, 1e39):
            with pytest.raises(UsageError, match="expected 0 <= weight < inf"):
                coded.mean(torch.zeros(4), weight)
        with pytest.raises(UsageError, match="expected 4 elements"):
            coded.commit(torch.zeros(1))
        with pytest.raises(UsageError, match="all_to_all: expected 2 rows"):
            coded.all_to_all(torch.zeros(3, 4))
        with pytest.raises(UsageError, match=r"src in 0\.\.1, found 2"):
            coded.broadcast(torch.zeros(4), 2)
        with pytest.raises(UsageError, match="permutation"):
            coded.permute(torch.zeros(4), [0, 0])

    simulate(train, 2)


EXACT = 3  # elements at the end of a vector
VERBS: dict[str, Callable[[Coded, Tensor], Tensor]] = {
    "mean": lambda comm, x: comm.mean(x)[0],
    "gather": lambda comm, x: comm.gather(x),
    "broadcast": lambda comm, x: comm.broadcast(x, 1),
    "permute": lambda comm, x: comm.permute(x, [1, 2, 0]),
    "all_to_all": lambda comm, x: comm.all_to_all(x.expand(comm.size, -1).contiguous()),
    "part": lambda comm, x: comm.split(0).gather(x),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("referenced", [True, False])
def test_the_last_elements_travel_exact_and_leave_the_others_alone(verb: str, referenced: bool) -> None:
    """Statistics of any size: the first elements are coded as if there were none behind them."""
    head = torch.linspace(-1.0, 1.0, 20)
    tail = torch.tensor([1e-12, 66329.47, -torch.inf])

    def found(comm: Comm, exact: int) -> Tensor:
        x = torch.cat([head * (1 + comm.rank), tail * (1 + comm.rank)])
        x = x if exact else x[:20]
        coded = Coded(comm, Int8(8), torch.zeros_like(x), exact=exact, referenced=referenced)
        return VERBS[verb](coded, x)

    without = simulate(lambda comm: found(comm, 0), 3)
    plain = simulate(lambda comm: VERBS[verb](comm, torch.cat([head, tail]) * (1 + comm.rank)), 3)  # type: ignore[arg-type]
    for rank, whole in enumerate(simulate(lambda comm: found(comm, EXACT), 3)):
        assert torch.equal(whole[..., :20], without[rank])
        assert torch.equal(whole[..., 20:], plain[rank][..., 20:])


@pytest.mark.parametrize("codec", [Int8(), TopK(0.1)])
@pytest.mark.parametrize("name", fast_ones(KINDS, ["local-sgd", "diloco", "swarm", "pso-ps", "easgd"]))
def test_running_statistics_beside_a_codec_are_exact(codec: Codec, name: str) -> None:
    """Nobody trains the weights: the statistics do not depend on the codec."""

    def train(comm: Comm, given: Codec | None) -> Tensor:
        model = nn.BatchNorm1d(3)
        options = Options(codec=given, probe=lambda module, step: 1.0, probe_cost=0.1)
        sync = Synchronizer(model, dataclasses.replace(VARIANTS[name], when=Every(4)), comm, options)
        numbers = torch.Generator().manual_seed(comm.rank)
        for _ in range(20):
            model(torch.randn(64, 3, generator=numbers) * torch.tensor([255.0, 1.0, 0.01]))
            sync.step(1.0 + comm.rank)
        sync.finish()
        assert model.eval()(torch.ones(1, 3)).isfinite().all()
        return torch.stack([model.running_mean, model.running_var])  # type: ignore[list-item]

    for coded, exact in zip(*(simulate(lambda c, g=g: train(c, g), 4) for g in (codec, None)), strict=True):
        assert torch.equal(coded, exact)
        assert (coded[1] > 0).all()
