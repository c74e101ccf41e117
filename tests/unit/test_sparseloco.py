"""SparseLoCo's codec: its mean and packets against NumPy, limit cases, bytes, bounds and what a round leaves."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from examples import few
from helpers import Trainer, same
from swarmstep import Comm, DiLoCo, Every, LocalSGD, Metered, Strategy, simulate
from swarmstep.comm import codecs
from swarmstep.comm.coded import Coded
from swarmstep.comm.packing import bins_of, packed_bins, packed_places, places_of
from swarmstep.comm.sparseloco import SparseLoCo
from swarmstep.errors import CommError, UsageError

Floats = NDArray[np.float32]
SHAPES = [(12, 9), (9,), (4, 3, 5), (1,)]
SIZES = [108, 9, 60, 1]
P = sum(SIZES)
CODEC = SparseLoCo(kept=3, chunk=16)
ALL = SparseLoCo(kept=16, chunk=16, bits=32, decay=0.0)
WEIGHTS = [[1.0, 1.0, 1.0], [1.0, 0.5, 0.0], [2.0, 1.0, 1.0]]


def drawn(r: int, rank: int) -> Floats:
    return np.random.default_rng([r, rank]).normal(size=P).astype(np.float32)


def play(comm: Comm, codec: SparseLoCo, weights: list[list[float]]) -> list[Any]:
    """Run a round for each row of weights; the mean is the next reference."""
    coded, found = Coded(comm, codec, torch.zeros(P), shapes=SHAPES), []
    for r, row in enumerate(weights):
        x = coded.state[0] + torch.from_numpy(drawn(r, comm.rank))
        if not row[comm.rank]:
            x.fill_(math.nan)
        before = [t.clone() for t in coded.state]
        mean, total = coded.mean(x, row[comm.rank])
        assert same([*coded.state], before), "mean changed the state"
        sent = coded.sent(x)
        coded.commit(mean)
        found.append((mean, total, sent, [t.clone() for t in coded.state]))
    return found


def quantized(values: Floats, bits: int) -> Floats:
    """Return what is sent of a tensor's kept values: with 2 bits each is the mean of its bin, 1.5 sigma wide."""
    if bits == 32:
        return values
    exact = values.astype(np.float64)
    middle = exact - exact.mean()
    sigma = np.sqrt((middle**2).sum() / max(1, len(exact) - 1))
    bins = np.clip(np.rint(middle / (1.5 * sigma if sigma > 0 else 1.0) + 2), 0, 3)
    means = {b: exact[bins == b].mean() for b in set(bins)}
    return np.array([means[b] for b in bins], np.float32)


def sparse(e: Floats, codec: SparseLoCo) -> tuple[Floats, list[Floats]]:
    """Return what a packet says of e [P], with zeros elsewhere, and the values that it sends of each tensor."""
    out, sent = np.zeros(P, np.float32), []
    for tensor, end in zip(SIZES, np.cumsum(SIZES), strict=True):
        kept: list[int] = []
        for a in range(end - tensor, end, codec.chunk):
            b = min(a + codec.chunk, end)
            kept += sorted((a + np.argsort(-np.abs(e[a:b]), kind="stable")[: codec.kept]).tolist())
        sent.append(quantized(e[kept], codec.bits))
        out[kept] = sent[-1]
    return out, sent


class Model:
    """The equations of the docstring for three ranks; which elements are sent is read off their values."""

    def __init__(self, codec: SparseLoCo) -> None:
        self.codec, self.reference, self.residuals = codec, np.zeros(P, np.float32), np.zeros((3, P), np.float32)

    def mean(self, xs: list[Floats], weights: list[float]) -> list[Floats]:
        """Take a mean; return what each rank has sent."""
        codec, packets, norms = self.codec, {}, {}
        for i in np.flatnonzero(weights):
            e = np.float32(codec.decay) * self.residuals[i] + xs[i] - self.reference
            packets[i], values = sparse(e, codec)
            self.residuals[i] = e - packets[i]
            norms[i] = [np.linalg.norm(v.astype(np.float64)) for v in values]
        total, count, parts = np.zeros(P), np.zeros(P), np.repeat(range(len(SIZES)), SIZES)
        for i, packet in packets.items():
            factor = np.ones(len(SIZES))
            if codec.clip:
                medians = np.sort([*norms.values()], 0)[(len(norms) - 1) // 2]
                factor = np.minimum(1, medians / norms[i])
            total += weights[i] * packet * factor[parts]
            count += weights[i] * (packet != 0)
        given = [self.reference + packets.get(i, 0) for i in range(3)]
        count = np.maximum(count, 1e-30) if codec.over == "senders" else sum(weights)
        self.reference = (self.reference + total / count).astype(np.float32)
        return given


@pytest.mark.parametrize(
    "codec",
    [
        CODEC,
        SparseLoCo(kept=3, chunk=16, clip=True),
        SparseLoCo(kept=5, chunk=16, over="workers", decay=1.0),
        SparseLoCo(kept=5, chunk=50, bits=32, clip=True, over="workers"),
        SparseLoCo(),
    ],
    ids=str,
)
def test_a_mean_is_that_of_the_equations(codec: SparseLoCo) -> None:
    found, model = simulate(lambda comm: play(comm, codec, WEIGHTS), 3), Model(codec)
    for r, row in enumerate(WEIGHTS):
        xs = [model.reference + drawn(r, i) for i in range(3)]
        expected = model.mean(xs, row)
        for i, (mean, total, sent, state) in enumerate(mine[r] for mine in found):
            assert np.allclose(mean, model.reference, atol=1e-5)
            assert total == sum(row)
            assert not row[i] or np.allclose(sent, expected[i], atol=1e-5)
            assert np.allclose(state[1], model.residuals[i], atol=1e-5)
            assert same(mean, found[0][r][0]), "the ranks disagree"


def test_nothing_is_lost() -> None:
    """What was kept and what was sent add up to b times what was kept before, and the step."""
    before = np.zeros((3, P), np.float32)
    for r, row in enumerate(WEIGHTS):
        for i, mine in enumerate(simulate(lambda comm: play(comm, CODEC, WEIGHTS), 3)):
            _, _, sent, state = mine[r]
            reference = mine[r - 1][3][0].numpy() if r else np.zeros(P)
            if row[i]:
                left = state[1].numpy() + (sent.numpy() - reference)
                assert np.allclose(left, 0.95 * before[i] + drawn(r, i), atol=2e-6)
            before[i] = state[1].numpy()


def trained(comm: Comm, strategy: Strategy, given: dict[str, Any]) -> torch.Tensor:
    trainer = Trainer(dataclasses.replace(strategy, when=Every(2)), comm, **given)
    for _ in range(8):
        trainer.step()
    return trainer.weights()


@pytest.mark.parametrize("over", ["senders", "workers"])
def test_with_all_elements_as_they_are_it_is_local_sgd(over: str) -> None:
    codec = dataclasses.replace(ALL, over=over)
    plain = simulate(lambda comm: trained(comm, LocalSGD(), {}), 3)
    for strategy in (LocalSGD(), DiLoCo(lr=1.0, momentum=0.0)):
        found = simulate(lambda comm, s=strategy: trained(comm, s, {"codec": codec}), 3)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, plain, strict=True))


def test_the_production_form_sends_146_times_less() -> None:
    """64 of 4096 in 12 + 2 bits each; the bytes are those that two workers exchange."""
    n = 256 * 4096

    def moved(comm: Comm) -> list[int]:
        metered, sent = Metered(comm), list[int]()
        for codec in (None, SparseLoCo()):
            coded = Coded(metered, codec, torch.zeros(n)) if codec else metered
            with metered.counting() as traffic:
                coded.mean(torch.ones(n))
            sent.append(traffic.sent)
        return sent

    for plain, coded in simulate(moved, 2):
        assert coded == 4 + 4 * 4 + 256 * 64 * 14 // 8
        assert 146 < plain / coded < 32 * 4096 / (64 * 14) == pytest.approx(146.286, abs=1e-3)


def traffic(comm: Comm) -> list[int]:
    metered = Metered(comm)
    coded, found = Coded(metered, CODEC, torch.zeros(P), shapes=SHAPES), []
    x = torch.ones(P)
    for call in (lambda: coded.mean(x), lambda: coded.gather(x), lambda: coded.permute(x, [1, 2, 0])):
        with metered.counting() as moved:
            call()
        found.append(moved.sent)
    return found


def test_bytes_are_those_of_the_formula() -> None:
    kept = (6 * 3 + 3) + 3 + (3 * 3 + 3) + 1  # 108 = 6 x 16 + 12; 9; 60 = 3 x 16 + 12; 1
    size = 16 * len(SIZES) + 3 * math.ceil(kept / 2) + math.ceil(kept / 4)
    assert simulate(traffic, 3) == [[2 * (4 + size), 2 * size, size]] * 3


def bounded(comm: Comm, over: str, wild: float) -> Floats:
    """One worker of five brings `wild` times its step; return the mean."""
    codec = SparseLoCo(kept=4, chunk=16, clip=True, over=over)
    coded = Coded(comm, codec, torch.zeros(P), shapes=SHAPES)
    x = torch.from_numpy(drawn(0, comm.rank)) * (wild if comm.rank == 2 else 1.0)
    return coded.mean(x)[0].numpy()


@few
@given(st.floats(1, 1e15))
def test_one_worker_moves_the_mean_by_no_more_than_the_others_wherever_it_points(wild: float) -> None:
    """Over all workers by at most the median norm / W; over the senders, who may be one, by the median."""
    for over, share in (("workers", 5), ("senders", 1)):
        found = simulate(lambda comm: bounded(comm, over, wild), 5)[0]  # noqa: B023
        near = simulate(lambda comm: bounded(comm, over, 1.0), 5)[0]  # noqa: B023
        packets = [sparse(drawn(0, i), SparseLoCo(kept=4, chunk=16))[1] for i in range(5)]
        start = 0
        for tensor, size in enumerate(SIZES):
            longest = sorted(float(np.linalg.norm(packet[tensor])) for packet in packets)[3]
            apart = np.linalg.norm((found - near)[start : start + size].astype(np.float64))
            assert apart <= 2 * longest / share * (1 + 1e-5)
            start += size


def alike(comm: Comm, clip: bool) -> torch.Tensor:
    coded = Coded(comm, dataclasses.replace(CODEC, clip=clip), torch.zeros(P), shapes=SHAPES)
    x = torch.from_numpy(drawn(0, 0)) * (-1.0 if comm.rank == 1 else 1.0)
    return coded.mean(x)[0]


def test_clipping_leaves_equal_norms_alone() -> None:
    assert same(simulate(lambda comm: alike(comm, True), 3), simulate(lambda comm: alike(comm, False), 3))


@given(st.lists(st.integers(0, 4095), max_size=9), st.lists(st.integers(0, 3), max_size=9))
def test_packing_and_back(places: list[int], bins: list[int]) -> None:
    packed, small = packed_places(torch.tensor(places, dtype=torch.int64)), packed_bins(torch.tensor(bins).long())
    assert (len(packed), len(small)) == (3 * math.ceil(len(places) / 2), math.ceil(len(bins) / 4))
    assert places_of(packed)[: len(places)].tolist() == places
    assert bins_of(small)[: len(bins)].tolist() == bins


def stranger(comm: Comm) -> bool:
    """What a worker sends may say anything: its places stay within the chunks that they are of."""
    coded = Coded(comm, CODEC, torch.zeros(P), shapes=SHAPES)
    rows = torch.full((1, coded._coding.size(P)), 255, dtype=torch.uint8)
    rows[:, : 16 * len(SIZES)] = torch.ones(4 * len(SIZES)).view(torch.uint8)
    out = torch.empty(P)
    coded._coding.decode(rows[0], out)
    return bool(out.isfinite().all()) and out.nonzero().view(-1).tolist() == [
        *range(15, 96, 16),
        107,
        116,
        *(range(117 + 15, 165, 16)),
        176,
        177,
    ]


def test_places_that_do_not_exist_are_taken_for_the_last_of_their_chunk() -> None:
    assert simulate(stranger, 2) == [True, True]


def other_verbs(comm: Comm) -> list[torch.Tensor]:
    coded = Coded(comm, ALL, torch.zeros(P), shapes=SHAPES)
    coded.commit(torch.ones(P))
    x = torch.from_numpy(drawn(0, comm.rank))
    rows = coded.all_to_all(x.expand(3, -1).contiguous())
    return [*coded.gather(x), coded.broadcast(x, 1), coded.permute(x, [1, 2, 0]), *rows]


def test_other_verbs_send_a_packet_too() -> None:
    xs = [torch.from_numpy(drawn(0, i)) for i in range(3)]
    for rank, mine in enumerate(simulate(other_verbs, 3)):
        expected = [*xs, xs[1], xs[(rank + 1) % 3], *xs]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(mine, expected, strict=True))


def refused(comm: Comm) -> None:
    for fields in ({"kept": 0}, {"chunk": 4097}, {"chunk": 0}, {"bits": 3}, {"over": "all"}, {"decay": 1.5}):
        with pytest.raises(UsageError, match="SparseLoCo: "):
            SparseLoCo(**fields)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="needs a reference"):
        Coded(comm, CODEC, torch.zeros(4), referenced=False)
    with pytest.raises(UsageError, match="shapes of 3 elements for a vector of 4"):
        Coded(comm, CODEC, torch.zeros(4), shapes=[(3,)])
    coded = Coded(comm, CODEC, torch.zeros(4))
    with pytest.raises(UsageError, match="expected 4 elements"):
        coded.commit(torch.zeros(1))
    with pytest.raises(CommError, match="weight 0"):
        coded.mean(torch.ones(4), 0.0)


def test_misuse_is_named() -> None:
    simulate(refused, 2)


def test_its_texts() -> None:
    assert codecs.parse("sparseloco") == SparseLoCo()
    assert codecs.parse("sparseloco:128") == SparseLoCo(kept=128)
    assert codecs.parse("sparseloco:64:clip") == SparseLoCo(clip=True)
    assert codecs.parse("sparseloco::clip") == SparseLoCo(clip=True)
    for wrong in ("sparseloco:0", "sparseloco:x", "sparseloco:64:clap"):
        with pytest.raises(UsageError, match="unknown codec"):
            codecs.parse(wrong)
