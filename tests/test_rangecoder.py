"""The range coder is specified in integers: an independent coder, in Python's integers, writes and reads its bytes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from saecodec.errors import FormatError, SaecodecError
from saecodec.rangecoder import PRECISION, TOTAL, StreamDecoder, StreamEncoder, model_of

Table = NDArray[np.int64]


def reference_encode(intervals: Sequence[tuple[int, int]]) -> bytes:
    """The stream of symbols given as (cumulative weight below the symbol, its weight).

    `low` is a whole number that grows by 32 bits at every renormalisation, so that carries need no care.
    """
    if not intervals:
        return b""
    low, width, n_words = 0, (1 << 64) - 1, 1
    for below, weight in intervals:
        scale = width >> PRECISION
        low, width = low + scale * below, scale * weight
        if width < 1 << 32:
            low, width, n_words = low << 32, width << 32, n_words + 1
    head = (low + (1 << 32) - 1) >> 32  # the shortest number inside [low, low + width)
    words = [(head >> (32 * i)) & 0xFFFFFFFF for i in reversed(range(n_words))]
    if ((low + width) >> 32) & 0xFFFFFFFF == words[-1]:
        words.append(0)
    return np.array(words, "<u4").tobytes()


def reference_decode(data: bytes, cumulatives: Sequence[list[int]]) -> list[int]:
    """The symbols of a stream, the i-th under the cumulative weights cumulatives[i] = [0, ..., 2^24]."""
    words = itertools.chain(np.frombuffer(data, "<u4").tolist(), itertools.repeat(0))
    low, width, point = 0, (1 << 64) - 1, next(words) << 32 | next(words)
    symbols = []
    for cumulative in cumulatives:
        scale = width >> PRECISION
        symbol = bisect.bisect_right(cumulative, (point - low) // scale) - 1
        low, width = low + scale * cumulative[symbol], scale * (cumulative[symbol + 1] - cumulative[symbol])
        if width < 1 << 32:
            low, width, point = low << 32, width << 32, point << 32 | next(words)
        symbols.append(symbol)
    return symbols


def cumulative(weights: Table) -> list[int]:
    return [0, *np.cumsum(weights).tolist()]


def peaked(n_symbols: int, peak: int) -> Table:
    """Weight 1 everywhere but at `peak`."""
    weights = np.ones(n_symbols, np.int64)
    weights[peak] = TOTAL - n_symbols + 1
    return weights


def proportional(counts: Sequence[int]) -> Table:
    share = np.array(counts, np.int64)
    weights = 1 + share * (TOTAL - len(counts)) // share.sum()
    weights[np.argmax(share)] += TOTAL - weights.sum()
    return weights


def encoded(parts: Sequence[tuple[Sequence[int], Table]]) -> bytes:
    stream = StreamEncoder()
    for symbols, weights in parts:
        stream.put(np.array(symbols, np.int32), model_of(weights))
    return stream.finish()


def check(symbols: list[int], weights: Table) -> None:
    """constriction and the reference agree on the bytes, and both read them."""
    edges = cumulative(weights)
    data = encoded([(symbols, weights)])
    assert data == reference_encode([(edges[s], int(weights[s])) for s in symbols])
    assert reference_decode(data, [edges] * len(symbols)) == symbols
    decoder = StreamDecoder(data, "stream")
    assert decoder.get(model_of(weights), len(symbols)).tolist() == symbols
    decoder.end()


TABLES = {
    "two equal symbols": np.array([TOTAL // 2] * 2),
    "two symbols, the first rare": peaked(2, 1),
    "two symbols, the second rare": peaked(2, 0),
    "a rare symbol between two huge ones": np.array([TOTAL // 2, 1, TOTAL // 2 - 1]),
    "rare symbols among huge ones": np.array([1, TOTAL // 3, 1, 1, TOTAL // 3, 1, TOTAL - 2 * (TOTAL // 3) - 4]),
    "weights that no float32 holds": np.array([TOTAL - 2**23 - 1 - 3, 2**23 + 1, 3]),
    "304 symbols, peak first": peaked(304, 0),
    "304 symbols, peak in the middle": peaked(304, 150),
    "304 symbols, peak last": peaked(304, 303),
    "304 symbols, a slope": proportional([i * i + 1 for i in range(304)]),
    "304 symbols, equal": proportional([1] * 304),
}


@pytest.mark.parametrize("weights", TABLES.values(), ids=TABLES.keys())
def test_the_cumulative_distribution_is_exactly_the_sum_of_the_weights(weights: Table) -> None:
    rng = np.random.default_rng(1)
    every = list(range(len(weights)))
    check(every, weights)
    check(every[::-1], weights)
    check(rng.choice(len(weights), 500).tolist(), weights)
    check(rng.choice(len(weights), 500, p=weights / TOTAL).tolist(), weights)


@given(
    st.lists(st.one_of(st.just(0), st.integers(0, 5), st.integers(0, 10**6)), min_size=2, max_size=304).filter(any),
    st.data(),
)
def test_any_table_codes_as_the_integer_coder_does(counts: list[int], data: st.DataObject) -> None:
    symbols = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=60))
    check(symbols, proportional(counts))


@pytest.mark.parametrize("weights", TABLES.values(), ids=TABLES.keys())
def test_the_decoder_separates_symbols_at_the_exact_edges(weights: Table) -> None:
    """A first word is the top 32 bits of the point; those at an edge of the distribution and one below it differ."""
    edges = cumulative(weights)
    scale = ((1 << 64) - 1) >> PRECISION
    for symbol in range(1, len(weights)):
        for point, expected in ((edges[symbol] * scale, symbol), (edges[symbol] * scale - 1, symbol - 1)):
            words = np.array([point >> 32, point & 0xFFFFFFFF], "<u4").tobytes()
            assert StreamDecoder(words, "stream").get(model_of(weights), 1).tolist() == [expected]


def test_several_tables_share_a_stream() -> None:
    parts = [([0, 1, 1], peaked(2, 0)), ([5, 303, 0], peaked(304, 5)), ([1] * 40, proportional([3, 4, 5]))]
    data = encoded(parts)
    intervals = [(cumulative(w)[s], int(w[s])) for symbols, w in parts for s in symbols]
    assert data == reference_encode(intervals)
    decoder = StreamDecoder(data, "stream")
    for symbols, weights in parts:
        assert decoder.get(model_of(weights), len(symbols)).tolist() == symbols
    decoder.end()


def test_carries_run_through_words_already_settled() -> None:
    """The likeliest symbol at the top of the interval keeps the low end just below a carry."""
    check([1] * 3000 + [0] + [1] * 100, peaked(2, 1))
    check(([303] * 50 + [302, 0]) * 20, peaked(304, 303))


def test_pinned_streams() -> None:
    assert encoded([([], peaked(2, 0))]) == b""
    assert encoded([([0], peaked(2, 0))]).hex() == "00000000"
    assert encoded([([1], peaked(2, 0))]).hex() == "00ffffff"
    assert encoded([([0, 1, 2, 2, 1, 0], proportional([1, 2, 5]))]).hex() == PINNED


PINNED = "00004409"


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, (1 << 40) - 1)), max_size=40))
def test_bits_of_every_width_are_read_back(pairs: list[tuple[int, int]]) -> None:
    bits = np.array([b for b, _ in pairs], np.int64)
    values = np.array([v & ((1 << b) - 1) for b, v in pairs], np.int64)
    stream = StreamEncoder()
    stream.put_bits(values, bits)
    data = stream.finish()
    decoder = StreamDecoder(data, "stream")
    np.testing.assert_array_equal(decoder.get_bits(bits), values)
    decoder.end()
    assert 8 * len(data) <= bits.sum() + 64


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, (1 << 40) - 1)), max_size=40))
def test_bits_are_uniform_symbols_in_pieces_of_16_low_pieces_of_all_values_first(pairs: list[tuple[int, int]]) -> None:
    stream = StreamEncoder()
    stream.put_bits(
        np.array([v & ((1 << b) - 1) for b, v in pairs], np.int64), np.array([b for b, _ in pairs], np.int64)
    )
    intervals = []
    for shift in (0, 16, 32):
        for b, v in pairs:
            width = min(b - shift, 16)
            if width > 0:
                weight = 1 << (PRECISION - width)
                intervals.append((((v & ((1 << b) - 1)) >> shift) % (1 << width) * weight, weight))
    assert stream.finish() == reference_encode(intervals)


@pytest.mark.parametrize(
    "weights",
    [[TOTAL], [TOTAL, 0], [0, TOTAL], [1, 1], [TOTAL + 1, -1], [TOTAL - 2, 1], [[TOTAL - 1, 1]], []],
    ids=str,
)
def test_weights_that_are_no_table_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (numpy's own for the empty table)
        model_of(np.array(weights, np.int64))


@pytest.mark.parametrize("length", [1, 2, 3, 5, 7])
def test_a_stream_of_broken_words_is_refused(length: int) -> None:
    with pytest.raises(FormatError, match="whole 32-bit words"):
        StreamDecoder(b"\0" * length, "stream")


EVEN = proportional([1, 1, 1, 1])
SYMBOLS = [0, 3, 2, 1] * 25


def finish_reading(data: bytes, n: int) -> list[int]:
    decoder = StreamDecoder(data, "support of chunk 3")
    symbols = decoder.get(model_of(EVEN), n).tolist()
    decoder.end()
    return symbols


def test_a_stream_that_ends_early_is_refused_by_name() -> None:
    data = encoded([(SYMBOLS, EVEN)])
    for cut in range(4, len(data), 4):
        with pytest.raises(FormatError, match="support of chunk 3"):
            finish_reading(data[:cut], len(SYMBOLS))


def test_an_empty_stream_holds_no_symbols() -> None:
    with pytest.raises(FormatError, match="did not end"):
        finish_reading(b"", len(SYMBOLS))
    assert finish_reading(b"", 0) == []


def test_a_stream_without_symbols_has_no_words() -> None:
    with pytest.raises(FormatError, match="did not end"):
        finish_reading(b"\0" * 4, 0)


def test_a_stream_with_words_left_over_is_refused() -> None:
    data = encoded([(SYMBOLS, EVEN)])
    with pytest.raises(FormatError, match="did not end"):
        finish_reading(data + b"\1\2\3\4" * 2, len(SYMBOLS))
    with pytest.raises(FormatError, match="did not end"):
        finish_reading(data, len(SYMBOLS) - 40)


@given(
    st.binary(max_size=64).map(lambda data: data[: len(data) // 4 * 4]),
    st.integers(0, 100),
    st.sampled_from(sorted(TABLES)),
)
def test_any_words_decode_or_raise_a_format_error(data: bytes, n: int, table: str) -> None:
    weights = TABLES[table]
    decoder = StreamDecoder(data, "stream")
    try:
        symbols = decoder.get(model_of(weights), n)
        values = decoder.get_bits(np.full(n, 20, np.int64))
        decoder.end()
    except SaecodecError:
        return
    assert ((symbols >= 0) & (symbols < len(weights))).all()
    assert ((values >= 0) & (values < 1 << 20)).all()
