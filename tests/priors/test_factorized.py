"""The factorized prior's tables are read back, cost what they say, and hostile ones are refused."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec import buckets, rangecoder
from saecodec.codes import Codes
from saecodec.errors import FormatError, InputError, SaecodecError
from saecodec.integers import pack_ints, zigzag
from saecodec.latents import LatentCodec
from saecodec.priors import factorized
from saecodec.priors.factorized import MAX_LATENTS, MAX_NONZEROS, FactorizedPrior
from saecodec.rangecoder import TOTAL
from saecodec.table_set import MAX_CLASSES, TableSet
from saecodec.tables import max_code
from saecodec.wire import ByteReader, varint, varints

BurstyCodes = Callable[..., Codes]
AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]


@st.composite
def table_sets(draw: st.DrawFn, n_latents: int | None = None, every_class: bool = False) -> TableSet:
    resolution = draw(st.integers(0, 3))
    n_classes, n_symbols = draw(st.integers(1, 5)), draw(st.integers(2, 30))
    codes = draw(
        st.lists(st.integers(0, max_code(resolution)), min_size=n_classes * n_symbols, max_size=n_classes * n_symbols)
    )
    n = draw(st.integers(1, 20)) if n_latents is None else n_latents
    classes = np.array(draw(st.lists(st.integers(0, n_classes - 1), min_size=n, max_size=n)))
    if every_class:
        classes = np.unique(classes, return_inverse=True)[1].reshape(-1)
        n_classes = int(classes.max()) + 1
        codes = codes[: n_classes * n_symbols]
    return TableSet(classes.astype(np.int64), np.array(codes, np.int64).reshape(n_classes, n_symbols), resolution)


@st.composite
def factorized_priors(draw: st.DrawFn) -> FactorizedPrior:
    n = draw(st.integers(1, 20))
    support, levels = draw(table_sets(n, every_class=True)), draw(table_sets(n))
    cuts = draw(st.sets(st.integers(1, len(support.codes) - 1))) if len(support.codes) > 1 else set()
    sizes = np.diff([0, *sorted(cuts), len(support.codes)])
    return FactorizedPrior(support, levels, tuple(sizes.tolist()), draw(st.booleans()))


def assert_same_tables(a: TableSet, b: TableSet) -> None:
    np.testing.assert_array_equal(a.classes, b.classes)
    np.testing.assert_array_equal(a.codes, b.codes)
    assert a.resolution == b.resolution


def read_tables(data: bytes, n_latents: int) -> TableSet:
    reader = ByteReader(data, "the tables")
    out = TableSet.read(reader, n_latents)
    reader.end()
    return out


def read_prior(data: bytes) -> FactorizedPrior:
    reader = ByteReader(data, "the prior")
    out = FactorizedPrior.read(reader)
    reader.end()
    return out


# -- tables ------------------------------------------------------------------------------------------------------------


@given(table_sets())
def test_tables_are_read_back(tables: TableSet) -> None:
    assert_same_tables(read_tables(tables.to_bytes(), len(tables.classes)), tables)


@given(table_sets())
def test_every_table_covers_every_bucket(tables: TableSet) -> None:
    assert tables.weights.shape == (len(tables.codes), buckets.N_BUCKETS)
    assert (tables.weights.sum(1) == TOTAL).all()
    assert tables.weights.min() >= 1
    np.testing.assert_array_equal(tables.least_bits, -np.log2(tables.weights.max(1) / TOTAL))


def tables_of(n_classes: int, n_symbols: int, resolution: int, classes: list[int], codes: list[int]) -> bytes:
    steps = np.diff(np.array(codes, np.int64).reshape(-1, max(n_symbols, 1)), axis=1, prepend=0).ravel()
    return varints([n_classes, n_symbols, resolution]) + pack_ints(np.array(classes)) + pack_ints(zigzag(steps))


HOSTILE_TABLES = {
    "no tables": tables_of(0, 2, 0, [0, 0], []),
    "more tables than allowed": varints([MAX_CLASSES + 1, 2, 0]),
    "one symbol": tables_of(1, 1, 0, [0, 0], [3]),
    "no symbols": tables_of(1, 0, 0, [0, 0], []),
    "more symbols than buckets": varints([1, 305, 0]),
    "a resolution of 4": tables_of(1, 2, 4, [0, 0], [3, 3]),
    "a class beyond the tables": tables_of(2, 2, 0, [0, 2], [3, 3, 3, 3]),
    "a huge class": tables_of(2, 2, 0, [0, 1 << 39], [3, 3, 3, 3]),
    "classes of too many latents": tables_of(2, 2, 0, [0, 1, 1], [3, 3, 3, 3]),
    "classes of too few latents": tables_of(2, 2, 0, [0], [3, 3, 3, 3]),
    "too few codes": tables_of(2, 2, 0, [0, 1], [3, 3]),
    "a code above its resolution's largest": tables_of(1, 2, 0, [0, 0], [3, 21]),
    "a code that falls below zero": tables_of(1, 2, 3, [0, 0], [3, -1]),
    "a step beyond any code": tables_of(1, 2, 3, [0, 0], [0, 161]),
    "a resolution not in its shortest form": b"\1\2\x80\0",
    "nothing": b"",
}


@pytest.mark.parametrize("data", HOSTILE_TABLES.values(), ids=HOSTILE_TABLES.keys())
def test_hostile_tables_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="the tables"):
        read_tables(data, 2)


# -- the prior ---------------------------------------------------------------------------------------------------------


@given(factorized_priors())
def test_a_prior_is_read_back(prior: FactorizedPrior) -> None:
    back = read_prior(prior.to_bytes())
    assert_same_tables(back.support, prior.support)
    assert_same_tables(back.levels, prior.levels)
    assert (back.group_sizes, back.signed, back.n_latents) == (prior.group_sizes, prior.signed, prior.n_latents)
    assert back.to_bytes() == prior.to_bytes()
    for name, array in prior.content().items():
        np.testing.assert_array_equal(back.content()[name], array)


@given(factorized_priors(), st.data())
def test_any_prior_codes_any_codes(
    any_codes: AnyCodes, assert_same_codes: SameCodes, prior: FactorizedPrior, data: st.DataObject
) -> None:
    codes = data.draw(any_codes(prior.n_latents, signed=prior.signed, columns=False))
    reader = ByteReader(prior.encode(codes), "chunk")
    assert_same_codes(prior.decode(reader, codes.n_rows, {}), codes)
    reader.end()


@given(factorized_priors(), st.data())
def test_some_latents_are_decoded_alone(
    any_codes: AnyCodes, assert_same_codes: SameCodes, prior: FactorizedPrior, data: st.DataObject
) -> None:
    codes = data.draw(any_codes(prior.n_latents, signed=prior.signed, columns=False))
    latents = np.array(data.draw(st.lists(st.integers(0, prior.n_latents - 1), max_size=4)), np.int64)
    reader = ByteReader(prior.encode(codes), "chunk")
    found = prior.decode_some(reader, codes.n_rows, {}, latents)
    reader.end()
    kept = codes.to_dense() * np.isin(np.arange(prior.n_latents), latents)
    assert_same_codes(found, Codes.from_dense(kept))


def test_other_groups_are_not_decoded(small: FactorizedPrior, monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[int] = []
    decoder = rangecoder.StreamDecoder.__init__
    monkeypatch.setattr(
        rangecoder.StreamDecoder,
        "__init__",
        lambda self, data, what: (streams.append(len(data)), decoder(self, data, what))[1],
    )
    data = small.encode(Codes.from_dense(np.ones((20, small.n_latents), np.int64)))
    small.decode_some(ByteReader(data, "chunk"), 20, {}, np.array([0]))
    assert len(streams) == 2 < 2 * len(small.group_sizes)


def test_a_prior_without_signs_refuses_negative_levels(bursty_codes: BurstyCodes) -> None:
    prior = LatentCodec.fit([bursty_codes(50, 6)]).prior
    with pytest.raises(InputError, match="never negative"):
        prior.encode(Codes.from_dense(np.array([[0, 0, -1, 0, 0, 0]])))


def test_a_chunk_of_too_many_nonzeros_is_refused(bursty_codes: BurstyCodes, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = bursty_codes(50, 6)
    prior = LatentCodec.fit([codes]).prior
    monkeypatch.setattr(factorized, "MAX_NONZEROS", codes.nnz - 1)
    with pytest.raises(InputError, match=f"a chunk of 50 rows and {codes.nnz} nonzeros is too large"):
        prior.encode(codes)


def table(classes: list[int], n_classes: int) -> TableSet:
    return TableSet(np.array(classes, np.int64), np.full((n_classes, 2), 3), 0)


def prior_of(
    n_latents: int = 3,
    signed: int = 0,
    groups: tuple[int, ...] = (1, 1),
    support: TableSet | None = None,
    levels: TableSet | None = None,
) -> bytes:
    support, levels = support or table([0, 1, 1], 2), levels or table([0, 0, 0], 1)
    return varints([n_latents, signed, len(groups), *groups]) + support.to_bytes() + levels.to_bytes()


HOSTILE_PRIORS = {
    "more latents than allowed": varints([MAX_LATENTS + 1, 0]),
    "latents that its tables do not have": prior_of(n_latents=1 << 22),
    "no latents": varints([0, 0, 1, 1]) + table([], 1).to_bytes() * 2,
    "a sign flag of 2": prior_of(signed=2),
    "no groups": prior_of(groups=()),
    "groups that leave a class out": prior_of(groups=(1,)),
    "groups beyond the classes": prior_of(groups=(1, 2)),
    "an empty group": prior_of(groups=(1, 0, 1)),
    "more groups than allowed": varints([3, 0, MAX_CLASSES + 1]),
    "more groups than bytes": varints([3, 0, MAX_CLASSES]),
    "a last support class without a latent": prior_of(support=table([0, 0, 0], 2)),
    "a level class beyond the tables": prior_of(levels=table([0, 1, 0], 1)),
    "a number of latents not in its shortest form": b"\x83\0" + prior_of()[1:],
}


@pytest.mark.parametrize("data", HOSTILE_PRIORS.values(), ids=HOSTILE_PRIORS.keys())
def test_a_hostile_prior_is_refused(data: bytes) -> None:
    assert read_prior(prior_of()).n_latents == 3
    start = time.perf_counter()
    with pytest.raises(FormatError, match="the prior"):
        read_prior(data)
    assert time.perf_counter() - start < 1


def test_a_support_class_in_the_middle_may_have_no_latent(assert_same_codes: SameCodes) -> None:
    prior = read_prior(prior_of(groups=(1, 2), support=table([0, 2, 2], 3)))
    codes = Codes.from_dense(np.array([[1, 0, 2], [0, 3, 1]]))
    assert_same_codes(prior.decode(ByteReader(prior.encode(codes), "chunk"), 2, {}), codes)


def test_every_truncation_and_every_changed_byte_of_a_prior_reads_or_is_refused(bursty_codes: BurstyCodes) -> None:
    codec = LatentCodec.fit([bursty_codes(60, 6)])
    data, chunk = codec.prior.to_bytes(), codec.prior.encode(bursty_codes(60, 6, seed=1))
    for cut in range(len(data)):
        with pytest.raises(SaecodecError):
            read_prior(data[:cut])
    used = 0
    for i in range(len(data)):
        for byte in range(0, 256, 1 if i < 12 else 15):  # every change of the counts
            start = time.perf_counter()
            try:
                prior = read_prior(data[:i] + bytes([byte]) + data[i + 1 :])
                used += 1
                if used % 10 == 0:
                    prior.decode(ByteReader(chunk, "chunk"), 60, {}).check()
            except SaecodecError:
                pass
            assert time.perf_counter() - start < 1
    assert used


# -- hostile chunks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> FactorizedPrior:
    """Three latents in two classes, two groups."""
    return read_prior(prior_of())


ZERO, ONES = b"\0" * 4, b"\xff" * 4


@pytest.mark.parametrize(
    "data, n_rows",
    [
        (b"", 5),
        (varints([1, 0]), 5),
        (varints([1, 0, 1, 0, 1]), 5),
        (varints([1, 0, 1, 0, 1, 0]) + ZERO, 5),
        (varints([1, 0, 1, 0, 1 << 40, 0]) + ZERO * 2, 5),
        (varints([1, 0, (1 << 62), 0, (1 << 62), 0]) + ZERO * 2, 5),
        (varints([6, 0, 1, 1, 0, 0]) + ZERO * 2, 5),  # more nonzeros than cells
        (varints([1, 0, 1, 1, 0, 0]) + ZERO * 2, 0),  # nonzeros without rows
        (varints([MAX_NONZEROS, 0, 1, 1, 0, 0]) + ZERO * 2, 1 << 20),
        (varints([MAX_NONZEROS + 1, 0, 1, 1, 0, 0]) + ZERO * 2, 1 << 20),
        (varints([0, MAX_NONZEROS, 0, 0, 1, 1]) + ZERO * 2, 1 << 20),
        (varints([100_000, 100_000, 1, 1, 1, 1]) + ZERO * 4, 1 << 20),  # more nonzeros than their streams can hold
        (varints([1, 1, 1, 1, 1, 1]) + ONES * 4, 5),  # gaps beyond the chunk
        (varints([1, 1, 3, 3, 1, 1]) + b"\x01" * 32, 5),  # words left over
        (b"\x81\x00" + varints([0, 1, 1, 0, 0]) + ZERO * 2, 5),
        (b"\xff" * 10, 5),
    ],
    ids=str,
)
def test_a_hostile_chunk_is_refused_quickly_and_without_memory(
    small: FactorizedPrior, data: bytes, n_rows: int
) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(FormatError, match="chunk 3"):
        small.decode(ByteReader(data, "chunk 3"), n_rows, {})

    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_the_sizes_of_a_hostile_chunk_are_refused_without_decoding(small: FactorizedPrior) -> None:
    with pytest.raises(FormatError, match="nonzeros cannot come from streams of these lengths"):
        small.stream_bytes(ByteReader(varints([6, 0, 1, 1, 0, 0]) + ZERO * 2, "chunk"), 5)
    with pytest.raises(FormatError, match="truncated"):
        small.stream_bytes(ByteReader(varints([1, 0, 1, 1, 0, 0]) + ZERO, "chunk"), 5)


def test_nonzeros_without_any_stream_are_refused(small: FactorizedPrior) -> None:
    with pytest.raises(FormatError, match="did not end"):
        small.decode(ByteReader(varints([2, 0, 0, 0, 0, 0]), "chunk"), 5, {})


def test_a_chunk_of_more_than_2_to_the_40_cells_is_refused() -> None:
    n_latents = 1 << 22
    zeros = np.zeros(n_latents, np.int64)
    prior = FactorizedPrior(TableSet(zeros, np.full((1, 2), 3), 0), TableSet(zeros, np.full((1, 2), 3), 0), (1,), False)
    nothing = np.zeros(0, np.int32)
    with pytest.raises(InputError, match="a chunk of 262145 rows and 0 nonzeros is too large"):
        prior.encode(Codes(np.zeros((1 << 18) + 2, np.int64), nothing, nothing, n_latents))
    with pytest.raises(FormatError, match="262145 rows of 4194304 latents are more than 1099511627776 cells"):
        prior.decode(ByteReader(varints([0, 0, 0]), "chunk"), (1 << 18) + 1, {})


def test_a_level_above_2_to_the_20_is_refused() -> None:
    codes = np.zeros((1, 304), np.int64)
    codes[0, 200:] = 5
    prior = FactorizedPrior(table([0], 1), TableSet(np.zeros(1, np.int64), codes, 0), (1,), True)
    too_large = Codes(np.array([0, 1]), np.zeros(1, np.int32), np.array([(1 << 20) + 1], np.int32), 1)
    with pytest.raises(FormatError, match="a level exceeds 2\\^20"):
        prior.decode(ByteReader(prior.encode(too_large), "chunk"), 1, {})


def test_counts_come_first_then_lengths_then_all_support_then_all_levels(small: FactorizedPrior) -> None:
    data = small.encode(Codes.from_dense(np.array([[1, 0, 2], [0, 0, 1]])))
    assert data.hex() == PINNED
    assert list(data[:2]) == [1, 2]  # nonzeros of the two classes
    lengths = list(data[2:6])
    assert len(data) == 6 + 4 * sum(lengths)
    assert small.stream_bytes(ByteReader(data, "chunk"), 2) == (
        4 * (lengths[0] + lengths[2]),
        4 * (lengths[1] + lengths[3]),
    )


PINNED = "0102010101010000000000d2feff000000000069ff7f"


def test_an_empty_chunk_is_its_counts_and_lengths(small: FactorizedPrior) -> None:
    assert small.encode(Codes.from_dense(np.zeros((7, 3), int))) == varint(0) * 6
