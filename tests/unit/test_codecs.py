"""Each codec against NumPy, written from the formulas in its docstring."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from codec_oracle import TINY, Bytes, Floats, oracle
from swarmstep.comm.codecs import PIECE, Bfloat16, Codec, Int4, Int8, LowRank, NMCodec, TopK, parse
from swarmstep.errors import UsageError

CODECS: list[Codec] = [
    Bfloat16(),
    Int8(),
    Int8(block=5),
    Int8(block=1),
    Int4(),
    Int4(block=5),
    Int4(block=1),
    TopK(0.02),
    TopK(0.3),
    TopK(1.0),
    NMCodec(2, 4),
    NMCodec(1, 16),
    NMCodec(3, 3),
]


def trip(codec: Codec, x: Floats, shift: int = 0) -> tuple[Bytes, Floats]:
    """Encode and decode, with all buffers `shift` elements into dirty memory, of which no other may change."""
    n, size = len(x), codec.size(len(x))
    source = torch.full((n + 2 * shift,), math.nan)
    source[shift : shift + n] = torch.from_numpy(x)
    data = torch.full((size + 2 * shift,), 77, dtype=torch.uint8)
    codec.encode(source[shift : shift + n], data[shift : shift + size])
    assert np.array_equal(source[shift : shift + n].numpy(), x), "encode changed x"
    out = torch.full((n + 2 * shift,), math.nan)
    codec.decode(data[shift : shift + size], out[shift : shift + n])
    for edge in (slice(0, shift), slice(shift + size, None)):
        assert (data[edge] == 77).all()
    for edge in (slice(0, shift), slice(shift + n, None)):
        assert out[edge].isnan().all()
    return data[shift : shift + size].numpy().copy(), out[shift : shift + n].numpy().copy()


def check(codec: Codec, x: Floats, shift: int = 0) -> None:
    data, values = trip(codec, x, shift)
    expected, wanted = oracle(codec, x)
    assert len(data) == codec.size(len(x)) == len(expected)
    assert np.array_equal(data, expected)
    assert np.array_equal(values, wanted)  # the sign of a zero is free


def vector(seed: int, n: int, exponent: float, spread: float) -> Floats:
    """Return numbers around 10**exponent, some of them equal, some zero."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=n) * 10.0 ** (exponent + spread * rng.normal(size=n))
    x[rng.random(n) < 0.1] = 0.0
    if n:
        x[rng.random(n) < 0.2] = x[0]
    return np.clip(x, -3e38, 3e38).astype(np.float32)


vectors = st.builds(
    vector, st.integers(0, 2**32), st.integers(0, 1500), st.floats(-46, 38.4), st.sampled_from([0.0, 0.3, 5.0])
)
singles = st.floats(width=32, min_value=-(2.0**127), max_value=2.0**127)  # beyond 3.39e38 bfloat16 is infinite
edges = st.lists(singles, max_size=12).map(lambda values: np.array(values, np.float32))


@pytest.mark.parametrize("codec", CODECS, ids=str)
@given(x=vectors | edges, shift=st.integers(0, 5))
def test_bytes_and_values_are_those_of_the_formula(codec: Codec, x: Floats, shift: int) -> None:
    check(codec, x, shift)


@pytest.mark.parametrize("codec", [c for c in CODECS if c not in (Int8(1), Int4(1), NMCodec(1, 16))], ids=str)
@pytest.mark.parametrize("n", [pytest.param(PIECE, marks=pytest.mark.slow), PIECE + 1])
def test_pieces_leave_no_seam(codec: Codec, n: int) -> None:
    x = vector(n, n, 0.0, 0.3)
    check(codec, x, shift=1)
    step = codec.piece(n)  # what Coded relies on: the bytes of the pieces, one behind the other
    pieces = [trip(codec, x[a : a + step])[0] for a in range(0, n, step)]
    assert np.array_equal(np.concatenate(pieces), trip(codec, x)[0])
    assert step == n or step % codec.grain == 0


@given(vectors, st.integers(1, 600))
def test_an_element_is_off_by_half_a_scale(x: Floats, block: int) -> None:
    for codec, top in ((Int8(block), 127), (Int4(block), 7)):
        error = np.abs(trip(codec, x)[1].astype(np.float64) - x)
        for a in range(0, len(x), block):
            scale = np.abs(x[a : a + block]).max() / top
            bound = scale / 2 * (1 + 1e-4) if scale >= TINY * (1 + 1e-6) else top * TINY * (1 + 1e-6)
            assert (error[a : a + block] <= bound).all()


@given(vectors)
def test_bfloat16_is_off_by_one_part_in_256(x: Floats) -> None:
    error = np.abs(trip(Bfloat16(), x)[1].astype(np.float64) - x)
    assert (error <= np.maximum(np.abs(x) / 256, 1e-40)).all()


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("value", [0.0, -0.0, 1e-45, 1e-40, 1.5e-38, 1e-36, 3.4e38])
def test_the_ends_of_the_range(codec: Codec, value: float) -> None:
    x = np.full(1100, value, np.float32)
    x[1::2] *= -1
    if isinstance(codec, Bfloat16) and value > 3.39e38:
        return
    values = trip(codec, x)[1]
    assert np.isfinite(values).all()
    check(codec, x)
    if value == 0.0:
        assert not values.any()
    elif value >= 1e-36 and not isinstance(codec, TopK | NMCodec):
        assert np.allclose(values, x, rtol=1e-2)


@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_hidden(codec: Codec, bad: float) -> None:
    x = np.ones(20, np.float32)
    x[3] = bad
    data, values = torch.zeros(codec.size(20), dtype=torch.uint8), torch.zeros(20)
    codec.encode(torch.from_numpy(x), data)
    codec.decode(data, values)
    assert not values.isfinite().all()


@given(st.integers(0, 10**7))
def test_sizes(n: int) -> None:
    assert Bfloat16().size(n) == 2 * n
    assert Int8().size(n) == n + 4 * math.ceil(n / 512)
    assert Int4().size(n) == math.ceil(n / 2) + 4 * math.ceil(n / 128)
    assert NMCodec(2, 4).size(n) == 8 * math.ceil(n / 4) + 3 * math.ceil(n / 32)
    assert TopK(0.02).size(n) == 4 + 5 * (max(1, math.ceil(0.02 * n)) if n else 0)


def clustered(kind: str, n: int) -> Floats:
    """Return vectors whose sample says little about their largest elements."""
    rng = np.random.default_rng(0)
    x = np.zeros(n, np.float32)
    if kind == "few not zero":
        x[rng.integers(0, n, 50)] = 1.0
    elif kind == "all equal":
        x[:] = -2.0
    elif kind == "sampled ones large":
        x[:] = rng.normal(size=n)
        x[:: n // PIECE] += 10.0
    elif kind == "two values":
        x[:] = rng.choice([1.0, -1.0, 2.0], size=n, p=[0.5, 0.49, 0.01])
    return x


@pytest.mark.parametrize("kind", ["zeros", "few not zero", "all equal", "sampled ones large", "two values"])
@pytest.mark.parametrize("fraction", [1e-6, 0.02, 0.9])
def test_topk_where_its_guess_misleads(kind: str, fraction: float) -> None:
    check(TopK(fraction), clustered(kind, 4 * PIECE + 3))


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_the_number_of_threads_changes_nothing(codec: Codec) -> None:
    x = vector(3, 300_001, 0.0, 1.0)
    alone = trip(codec, x)
    torch.set_num_threads(3)
    try:
        together = trip(codec, x)
    finally:
        torch.set_num_threads(1)
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_parse() -> None:
    assert parse("bfloat16") == Bfloat16()
    assert parse("int8") == Int8(512)
    assert parse("int4") == Int4(128)
    assert parse("topk:0.02") == TopK(0.02)
    assert parse("topk:1") == TopK(1.0)
    assert parse("nm:2:4") == NMCodec(2, 4)
    assert parse("rank:4") == LowRank(4)
    assert [parse(spec).needs_reference for spec in ("bfloat16", "int8", "int4", "topk:0.1")] == [0, 0, 1, 1]
    for wrong in (
        "",
        "int5",
        "topk",
        "topk:",
        "topk:x",
        "topk:0",
        "topk:1.5",
        "topk:nan",
        "topk:-1",
        "int8:4",
        "nm:2",
        "nm:5:4",
        "nm:1:17",
        "rank:0",
        "rank:1.5",
        "Int8",
    ):
        with pytest.raises(UsageError, match=r"expected one of bfloat16, int8, int4, topk:FRACTION"):
            parse(wrong)
    for make in (lambda: Int8(0), lambda: Int4(-1), lambda: TopK(0.0), lambda: TopK(math.nan)):
        with pytest.raises(UsageError, match="expected"):
            make()
