"""The context prior packs any codes into the same bytes in any arithmetic, and refuses bytes that are no chunk."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from saecodec import buckets
from saecodec.codes import MAX_LEVEL, Codes
from saecodec.costs import COST_LEVELS
from saecodec.errors import FormatError, InputError, SaecodecError
from saecodec.latents import LatentCodec
from saecodec.priors import context
from saecodec.priors.context import MAX_ACTIVATIONS, ContextPrior
from saecodec.priors.factorized import MAX_NONZEROS
from saecodec.priors.network import MAX_RANK, Arithmetic
from saecodec.rangecoder import TOTAL
from saecodec.table_set import TableSet
from saecodec.wire import ByteReader, varint, varints

AnyCodes = Callable[..., st.SearchStrategy[Codes]]
SameCodes = Callable[[Codes, Codes], None]
SEQ = "seq"


def reread(prior: ContextPrior) -> ContextPrior:
    reader = ByteReader(prior.to_bytes(), "the prior")
    out = ContextPrior.read(reader)
    reader.end()
    return out


def decode(prior: ContextPrior, data: bytes, codes: Codes) -> Codes:
    """The codes of a chunk with the columns of `codes`."""
    reader = ByteReader(data, "chunk")
    out = prior.decode(reader, codes.n_rows, codes.columns)
    reader.end()
    return replace(out.check(), columns=codes.columns)


def with_arithmetic(prior: ContextPrior, dtype: torch.dtype, device: str = "cpu") -> ContextPrior:
    """The prior, its network run with another arithmetic."""
    out = replace(prior)
    out.__dict__["arithmetic"] = Arithmetic(out.network, dtype, device)
    assert out.arithmetic.dtype is dtype
    return out


def empty_codes(n_rows: int, n_latents: int) -> Codes:
    nothing = np.zeros(0, np.int32)
    return Codes(np.zeros(n_rows + 1, np.int64), nothing, nothing, n_latents)


# -- round trips -------------------------------------------------------------------------------------------------------


@given(st.data())
def test_any_prior_codes_any_codes(
    cases: ModuleType, any_codes: AnyCodes, assert_same_codes: SameCodes, data: st.DataObject
) -> None:
    prior = cases.random_context_prior(
        data.draw(st.integers(0, 1 << 30)),
        signed=data.draw(st.booleans()),
        n_latents=data.draw(st.integers(1, 12)),
        n_blocks=data.draw(st.integers(1, 5)),
        rank=data.draw(st.integers(1, 10)),
        n_bins=data.draw(st.integers(1, 128)),
        n_level_bins=data.draw(st.integers(1, 128)),
        extreme=data.draw(st.booleans()),
    )
    codes = data.draw(any_codes(prior.n_latents, signed=prior.signed))
    if data.draw(st.booleans()):
        ids = data.draw(st.lists(st.integers(-1, 1), min_size=codes.n_rows, max_size=codes.n_rows))
        codes = replace(codes, columns={**codes.columns, SEQ: np.array(ids, np.int64)})
    codec = LatentCodec(reread(prior))
    chunk = codec.pack(codes)
    assert_same_codes(codec.unpack(chunk), codes)
    assert_same_codes(decode(prior, prior.encode(codes), codes), codes)
    latents = np.array(data.draw(st.lists(st.integers(0, prior.n_latents - 1), max_size=3)), np.int64)
    kept = codes.to_dense() * np.isin(np.arange(prior.n_latents), latents)
    assert_same_codes(codec.unpack_some(chunk, latents), Codes.from_dense(kept, codes.columns))


def dense_cases() -> dict[str, np.ndarray]:
    gaps = np.zeros((50, 20), np.int64)
    gaps[[0, 49], [0, 19]] = 1, MAX_LEVEL
    levels = np.zeros((20, 20), np.int64)
    levels[np.arange(20), np.arange(20)] = [
        1,
        2,
        15,
        16,
        17,
        18,
        31,
        32,
        33,
        1000,
        *range(MAX_LEVEL - 9, MAX_LEVEL + 1),
    ]
    return {
        "no rows": np.zeros((0, 20), np.int64),
        "one row": np.arange(20)[None] % 3,
        "one row with nothing active": np.zeros((1, 20), np.int64),
        "nothing active": np.zeros((40, 20), np.int64),
        "everything on": np.ones((30, 20), np.int64),
        "the first and the last cell": gaps,
        "levels beyond the direct range": levels,
        "every other row empty": np.ones((21, 20), np.int64) * (np.arange(21) % 2)[:, None],
    }


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("dense", dense_cases().values(), ids=dense_cases().keys())
def test_edge_cases_come_back(cases: ModuleType, assert_same_codes: SameCodes, dense: np.ndarray, signed: bool) -> None:
    signs = np.where(np.arange(dense.size).reshape(dense.shape) % 2, -1, 1) if signed else 1
    for seed, columns in enumerate(({}, {SEQ: np.arange(len(dense)) // 3})):
        prior = cases.random_context_prior(seed, signed=signed)
        codes = Codes.from_dense(dense * signs, columns)
        assert_same_codes(decode(prior, prior.encode(codes), codes), codes)


def test_a_large_chunk_comes_back_in_slabs(cases: ModuleType, assert_same_codes: SameCodes) -> None:
    prior = cases.random_context_prior(4, n_latents=300, rank=16, n_blocks=3)
    codes = cases.random_codes(4, 9000, 300, rate=0.01, sequences=True)
    assert_same_codes(decode(prior, prior.encode(codes), codes), codes)


def test_sequence_ids_decide_the_bytes_and_other_columns_do_not(cases: ModuleType) -> None:
    prior = cases.random_context_prior(5)
    codes = cases.random_codes(5, 60, 20, sequences=True)
    bare = replace(codes, columns={})
    assert prior.encode(codes) != prior.encode(bare)
    assert prior.encode(replace(codes, columns={"doc": codes.columns[SEQ]})) == prior.encode(bare)
    assert prior.encode(replace(codes, columns={SEQ: 7 - 3 * codes.columns[SEQ]})) == prior.encode(codes)


def test_without_neighbours_rows_are_told_as_if_each_were_a_sequence(cases: ModuleType) -> None:
    prior = cases.random_context_prior(6)
    codes = cases.random_codes(6, 40, 20)
    alone = prior.binned(replace(codes, columns={SEQ: np.arange(40)}))
    binned = prior.binned(codes, neighbours=False)
    np.testing.assert_array_equal(binned.bins, alone.bins)
    np.testing.assert_array_equal(binned.gaps, alone.gaps)
    np.testing.assert_array_equal(binned.level_bins, alone.level_bins)
    assert (prior.binned(codes).bins != binned.bins).any()


# -- the same bytes, everywhere ----------------------------------------------------------------------------------------

OTHERS = [torch.float64, torch.int32, torch.int64]


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_every_arithmetic_writes_the_same_bytes_and_reads_those_of_the_others(
    cases: ModuleType, assert_same_codes: SameCodes, extreme: bool, sequences: bool
) -> None:
    prior = cases.random_context_prior(7, signed=True, n_latents=60, rank=100, extreme=extreme)
    codes = cases.random_codes(7, 80, 60, signed=True, sequences=sequences)
    data = prior.encode(codes)
    others = [with_arithmetic(prior, dtype) for dtype in OTHERS]
    if torch.cuda.is_available():
        others += [with_arithmetic(prior, dtype, "cuda") for dtype in (torch.float32, torch.float64)]
    for other in others:
        assert other.encode(codes) == data
        assert_same_codes(decode(other, data, codes), codes)
        assert other.ideal_bits(codes) == prior.ideal_bits(codes)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_byte(
    cases: ModuleType, assert_same_codes: SameCodes, torch_threads: Callable[[int], None], threads: int
) -> None:
    prior = cases.random_context_prior(8, n_latents=120, rank=192, n_bins=97, n_level_bins=32)
    codes = cases.random_codes(8, 500, 120, rate=0.05, sequences=True)
    data = prior.encode(codes)
    torch_threads(threads)
    assert prior.encode(codes) == data
    assert_same_codes(decode(prior, data, codes), codes)


# -- what the bytes are ------------------------------------------------------------------------------------------------


def test_gaps_are_counted_among_the_cells_of_a_bin(cases: ModuleType) -> None:
    """By brute force: positions, ranks and gaps as "Chunks" of docs/format.md says."""
    prior = cases.random_context_prior(9)
    codes = cases.random_codes(9, 30, 20, sequences=True)
    n, told = prior.network, cases.reference(prior.network, codes)
    dense = codes.to_dense()[:, n.layout.latent_of].T.ravel()
    bins, level_bins = told.bins.ravel(), told.level_bins.ravel()
    gaps, levels = [], []
    for b in range(n.n_bins):
        gap = 0
        for level in dense[bins == b].tolist():
            gap += 1
            if level:
                gaps.append((b, gap - 1))
                gap = 0
    for b in range(n.n_level_bins):
        levels += [(b, level) for level in dense[(level_bins == b) & (dense != 0)].tolist()]
    binned = prior.binned(codes)
    assert binned.gaps.tolist() == [gap for _, gap in gaps]
    assert np.diff(binned.first_gap).tolist() == np.bincount([b for b, _ in gaps], minlength=n.n_bins).tolist()
    assert binned.cells.level[binned.level_order].tolist() == [level for _, level in levels]
    assert (
        np.diff(binned.first_level).tolist() == np.bincount([b for b, _ in levels], minlength=n.n_level_bins).tolist()
    )


def test_counts_come_first_then_lengths_then_the_support_then_the_levels(cases: ModuleType) -> None:
    prior = cases.random_context_prior(10, n_bins=5, n_level_bins=3)
    codes = cases.random_codes(10, 40, 20)
    data = prior.encode(codes)
    reader = ByteReader(data, "chunk")
    counts, level_counts = reader.varints(5), reader.varints(3)
    assert sum(counts) == sum(level_counts) == codes.nnz
    support, levels = reader.varints(2)
    assert reader.left == 4 * (support + levels)
    again = ByteReader(data, "chunk")
    assert prior.stream_bytes(again, 40) == (4 * support, 4 * levels)
    again.end()


def test_a_chunk_without_nonzeros_is_its_counts_and_lengths(cases: ModuleType) -> None:
    prior = cases.random_context_prior(11, n_bins=5, n_level_bins=3)
    for n_rows in (0, 1, 50):
        assert prior.encode(empty_codes(n_rows, 20)) == varint(0) * 10


@pytest.mark.parametrize("signed", [False, True])
def test_the_coded_size_is_close_to_the_ideal(cases: ModuleType, signed: bool) -> None:
    prior = cases.random_context_prior(12, signed=signed, n_latents=100)
    codes = cases.random_codes(12, 1000, 100, rate=0.1, signed=signed, sequences=True)
    sizes = prior.stream_bytes(ByteReader(prior.encode(codes), "chunk"), codes.n_rows)
    ideal = prior.ideal_bits(codes)
    for coded, bits in zip(sizes, ideal, strict=True):
        assert abs(8 * coded - bits) <= 0.01 * bits + 64
    support, levels = prior.cell_bits(prior.binned(codes))
    assert (len(support), len(levels)) == (codes.nnz, codes.nnz)
    assert (support.sum(), levels.sum()) == pytest.approx(ideal)
    for found, of_cells in zip(prior.nonzero_bits(codes), (support, levels), strict=True):
        assert found[prior.network.layout.order(codes)].tolist() == of_cells.tolist()


def test_bits_of_cells_are_those_of_their_own_gap_and_level(cases: ModuleType) -> None:
    prior = cases.random_context_prior(13, signed=True)
    binned = prior.binned(cases.random_codes(13, 30, 20, signed=True))
    support, levels = prior.cell_bits(binned)
    order = np.argsort(binned.bins, kind="stable").tolist()
    for gap, i in zip(binned.gaps.tolist(), order, strict=True):
        bucket = int(buckets.bucket_of(np.array([gap]))[0])
        weight = prior.support.weights[prior.support.classes[binned.bins[i]], bucket]
        assert support[i] == pytest.approx(math.log2(TOTAL / weight) + buckets.OFFSET_BITS[bucket])
        bucket = int(buckets.bucket_of(np.abs(binned.cells.level[[i]]).astype(np.int64) - 1)[0])
        weight = prior.levels.weights[prior.levels.classes[binned.level_bins[i]], bucket]
        assert levels[i] == pytest.approx(math.log2(TOTAL / weight) + buckets.OFFSET_BITS[bucket] + 1)


@pytest.mark.parametrize("signed", [False, True])
def test_costs_are_those_of_the_latent_and_of_its_levels_bin(cases: ModuleType, signed: bool) -> None:
    prior = cases.random_context_prior(14, signed=signed)
    costs = prior.costs()
    np.testing.assert_array_equal(costs.support, prior.cost / 8)
    assert costs.support.dtype == costs.levels.dtype == np.float32
    assert costs.levels.shape == (len(prior.levels.codes), COST_LEVELS)
    assert not costs.levels[:, 0].any()
    np.testing.assert_array_equal(costs.level_class, prior.levels.classes[prior.cost_bin])
    first = np.log2(TOTAL / prior.levels.weights[:, 0]) + signed
    np.testing.assert_allclose(costs.levels[:, 1], first, rtol=1e-6)


# -- storage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_a_prior_is_read_back(cases: ModuleType, seed: int) -> None:
    sizes = {"n_latents": 1 + 7 * seed, "n_blocks": 1 + seed, "rank": 1 + seed, "extreme": seed % 3 == 2}
    prior = cases.random_context_prior(seed, signed=seed % 2 == 1, n_bins=1 + 14 * seed, **sizes)
    back = reread(prior)
    assert back.to_bytes() == prior.to_bytes()
    assert back.content().keys() == prior.content().keys()
    for name, array in prior.content().items():
        np.testing.assert_array_equal(back.content()[name], array, err_msg=name)
    np.testing.assert_array_equal(back.cost, prior.cost)
    np.testing.assert_array_equal(back.cost_bin, prior.cost_bin)
    assert (back.signed, back.n_latents, back.n_level_classes) == (
        prior.signed,
        prior.n_latents,
        prior.level_class.max() + 1,
    )
    assert LatentCodec.from_bytes(LatentCodec(prior).to_bytes()).to_bytes() == LatentCodec(prior).to_bytes()


def test_what_steers_searches_alone_is_no_content(cases: ModuleType) -> None:
    prior = cases.random_context_prior(15)
    cheap = replace(prior, cost=np.zeros_like(prior.cost), cost_bin=np.zeros_like(prior.cost_bin))
    codes = cases.random_codes(15, 30, 20)
    assert cheap.encode(codes) == prior.encode(codes)
    for name, array in prior.content().items():
        np.testing.assert_array_equal(cheap.content()[name], array, err_msg=name)


HOSTILE_PRIORS: dict[str, Callable[[ContextPrior], ContextPrior]] = {
    "a centroid class beyond the limit": lambda p: replace(p, level_class=p.level_class + 1024),
    "too dear a cost": lambda p: replace(p, cost=p.cost + 321),
    "a level bin that the network does not have": lambda p: replace(p, cost_bin=p.cost_bin + 6),
    "centroid classes of too few latents": lambda p: replace(p, level_class=p.level_class[1:]),
    "costs of too many latents": lambda p: replace(p, cost=np.append(p.cost, 1)),
    "tables of too few bins": lambda p: replace(p, support=replace(p.support, classes=p.support.classes[1:])),
    "tables of too many level bins": lambda p: replace(p, levels=replace(p.levels, classes=p.support.classes)),
}


@pytest.mark.parametrize("change", HOSTILE_PRIORS.values(), ids=HOSTILE_PRIORS.keys())
def test_a_hostile_prior_is_refused(cases: ModuleType, change: Callable[[ContextPrior], ContextPrior]) -> None:
    with pytest.raises(FormatError, match="the prior"):
        reread(change(cases.random_context_prior(16)))


def test_a_sign_flag_of_2_is_refused(cases: ModuleType) -> None:
    data = cases.random_context_prior(16).to_bytes()
    with pytest.raises(FormatError, match="found 2 where at most 1"):
        ContextPrior.read(ByteReader(b"\2" + data[1:], "the prior"))


def test_every_truncation_and_every_changed_byte_of_a_prior_reads_or_is_refused(cases: ModuleType) -> None:
    prior = cases.random_context_prior(17, n_latents=5, n_blocks=2, rank=2, n_bins=3, n_level_bins=2)
    codes = cases.random_codes(17, 20, 5)
    data, chunk = prior.to_bytes(), prior.encode(codes)
    for cut in range(len(data)):
        with pytest.raises(SaecodecError):
            ContextPrior.read(ByteReader(data[:cut], "the prior"))
    used = 0
    for i in range(len(data)):
        for byte in range(i % 83, 256, 7 if i < 12 else 83):
            start = time.perf_counter()
            try:
                reader = ByteReader(data[:i] + bytes([byte]) + data[i + 1 :], "the prior")
                other = ContextPrior.read(reader)
                reader.end()
                used += 1
                if used % 10 == 0:
                    other.decode(ByteReader(chunk, "chunk"), 20, {}).check()
            except SaecodecError:
                pass
            assert time.perf_counter() - start < 1
    assert used > 20


# -- what cannot be packed ---------------------------------------------------------------------------------------------


def test_a_chunk_of_too_many_rows_is_refused(cases: ModuleType) -> None:
    prior = cases.random_context_prior(18, rank=MAX_RANK, n_latents=2)
    limit = MAX_ACTIVATIONS // MAX_RANK
    with pytest.raises(InputError, match=f"a chunk of {limit + 1} rows and 0 nonzeros is too large.*fewer rows"):
        prior.encode(empty_codes(limit + 1, 2))
    data = prior.encode(empty_codes(limit, 2))
    assert decode(prior, data, empty_codes(limit, 2)).n_rows == limit
    with pytest.raises(FormatError, match=f"{limit + 1} rows are too many"):
        prior.decode(ByteReader(data, "chunk"), limit + 1, {})
    with pytest.raises(FormatError, match=f"{limit + 1} rows are too many"):
        prior.stream_bytes(ByteReader(data, "chunk"), limit + 1)


def test_a_chunk_of_too_many_nonzeros_or_cells_is_refused(cases: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    prior = cases.random_context_prior(19)
    codes = cases.random_codes(19, 30, 20)
    with monkeypatch.context() as patch:
        patch.setattr(context, "MAX_NONZEROS", codes.nnz - 1)
        with pytest.raises(InputError, match=f"a chunk of 30 rows and {codes.nnz} nonzeros is too large"):
            prior.encode(codes)
    monkeypatch.setattr(context, "MAX_WALK_CELLS", 30 * 20 - 1)
    with pytest.raises(InputError, match=f"a chunk of 30 rows and {codes.nnz} nonzeros is too large"):
        prior.encode(codes)


def test_a_prior_without_signs_refuses_negative_levels(cases: ModuleType) -> None:
    with pytest.raises(InputError, match="never negative"):
        cases.random_context_prior(20).encode(Codes.from_dense(-np.eye(3, 20, dtype=np.int64)))


# -- hostile chunks ----------------------------------------------------------------------------------------------------


def survives(codec: LatentCodec, chunk: bytes) -> bool:
    """Whether a chunk decodes; if so to valid codes. Anything but codes or a FormatError fails the test."""
    start = time.perf_counter()
    try:
        codes = codec.unpack(chunk)
    except FormatError:
        return False
    finally:
        assert time.perf_counter() - start < 1
    codes.check()
    return True


@pytest.mark.parametrize("signed", [False, True])
def test_every_truncation_and_every_changed_byte_decodes_or_is_refused(cases: ModuleType, signed: bool) -> None:
    sizes = {"n_latents": 5, "n_blocks": 3, "rank": 3, "n_bins": 4, "n_level_bins": 3}
    codec = LatentCodec(cases.random_context_prior(21, signed=signed, **sizes))
    made = cases.random_codes(21, 6, 5, rate=0.4, signed=signed)
    chunk = codec.pack(replace(made, columns={SEQ: np.arange(6) // 4}))
    assert survives(codec, chunk)
    for cut in range(len(chunk)):
        assert not survives(codec, chunk[:cut])
    for i in range(len(chunk)):
        for byte in range(i % 9, 256, 9):
            survives(codec, chunk[:i] + bytes([byte]) + chunk[i + 1 :])
    tracemalloc.start()  # slow, so only for flips of single bits
    for i in range(len(chunk)):
        for bit in range(0, 8, 1 if i < 25 else 3):
            survives(codec, chunk[:i] + bytes([chunk[i] ^ 1 << bit]) + chunk[i + 1 :])
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()
    for rest in (b"\0", b"\0" * 4, chunk):
        assert not survives(codec, chunk + rest)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_chunk_or_are_refused(cases: ModuleType, data: bytes) -> None:
    survives(LatentCodec(cases.random_context_prior(22, signed=True, n_latents=4, n_bins=3, n_level_bins=2)), data)


@pytest.fixture(scope="module")
def small(cases: ModuleType) -> ContextPrior:
    """Three latents, two bins and two level bins; flat tables, but for one of cheap gaps."""
    made = cases.random_context_prior(23, n_latents=3, n_blocks=2, rank=2, n_bins=2, n_level_bins=2)
    support = TableSet(np.array([0, 1]), np.array([[3, 3], [20, 1]]), 0)
    return replace(made, support=support, levels=TableSet(np.array([0, 0]), np.array([[3, 3]]), 0))


ZERO, ONES = b"\0" * 4, b"\xff" * 4


@pytest.mark.parametrize(
    "data, n_rows",
    [
        (b"", 5),
        (varints([1, 0, 1]), 5),
        (varints([1, 0, 1, 0, 1]), 5),
        (varints([1, 0, 1, 0, 1, 1]) + ZERO, 5),  # a stream is missing
        (varints([1, 0, 1, 0, 1 << 40, 0]) + ZERO * 2, 5),
        (varints([1, 0, 1, 0, 1 << 62, 1 << 62]) + ZERO * 2, 5),
        (varints([16, 0, 16, 0, 1, 1]) + ZERO * 2, 5),  # more nonzeros than cells
        (varints([1, 0, 1, 0, 1, 1]) + ZERO * 2, 0),  # nonzeros without rows
        (varints([2, 1, 1, 1, 1, 1]) + ZERO * 2, 5),  # fewer levels than nonzeros
        (varints([1, 0, 2, 0, 1, 1]) + ZERO * 2, 5),  # more levels than nonzeros
        (varints([MAX_NONZEROS, 0, MAX_NONZEROS, 0, 1, 1]) + ZERO * 2, 1 << 20),
        (varints([0, MAX_NONZEROS, MAX_NONZEROS, 0, 1, 1]) + ZERO * 2, 1 << 20),
        (varints([0, MAX_NONZEROS, 0, MAX_NONZEROS, 16, 1]) + ZERO * 17, 1 << 20),  # gaps may be this cheap, levels not
        (varints([MAX_NONZEROS + 1, 0, 1, 0, 1, 1]) + ZERO * 2, 1 << 20),
        (varints([MAX_NONZEROS, MAX_NONZEROS, MAX_NONZEROS, MAX_NONZEROS, 1, 1]) + ZERO * 2, 1 << 20),
        (varints([100_000, 0, 100_000, 0, 2, 2]) + ZERO * 4, 1 << 20),
        (varints([1, 0, 1, 0, 1, 1]) + ONES * 2, 5),  # gaps beyond the bin
        (varints([1, 0, 1, 0, 3, 3]) + b"\x01" * 24, 5),  # words left over
        (varints([1, 0, 1, 0, 0, 0]), 5),  # no streams
        (b"\x81\x00" + varints([0, 1, 0, 1, 1]) + ZERO * 2, 5),
        (b"\xff" * 10, 5),
    ],
    ids=str,
)
def test_a_hostile_chunk_is_refused_quickly_and_without_memory(small: ContextPrior, data: bytes, n_rows: int) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    with pytest.raises(FormatError, match="chunk 3"):
        small.decode(ByteReader(data, "chunk 3"), n_rows, {})
    assert time.perf_counter() - start < 1
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def moved(counts: list[int]) -> list[int]:
    """One taken from the first that has one, given to another."""
    out, at = list(counts), next(i for i, n in enumerate(counts) if n)
    out[at] -= 1
    out[(at + 1) % len(out)] += 1
    return out


def test_level_counts_other_than_the_networks_are_refused(small: ContextPrior) -> None:
    """One table serves both level bins, so that the stream decodes as before."""
    codes = Codes.from_dense(np.array([[1, 0, 2], [0, 0, 1], [3, 1, 1]]))
    data = small.encode(codes)
    head = list(data[:6])
    assert sum(head[2:4]) == codes.nnz
    lied = bytes([*head[:2], *moved(head[2:4]), *head[4:]]) + data[6:]
    with pytest.raises(FormatError, match="more levels are needed of a bin than there are"):
        small.decode(ByteReader(lied, "chunk"), 3, {})


def test_gaps_that_end_behind_the_cells_of_their_bin_are_refused(small: ContextPrior) -> None:
    """They are no more than the chunk has cells, but more than the bin has."""
    n = small.network
    alone = replace(small, network=replace(n, out_bias=n.out_bias * 0, out=n.out * 0))  # all cells in bin 0
    codes = Codes.from_dense(np.array([[1, 0, 0], [0, 0, 0]]))
    data = bytearray(alone.encode(codes))
    assert list(data[:2]) == [1, 0]
    other = replace(alone, support=replace(alone.support, classes=np.array([0, 0])))
    data[:2] = 0, 1
    with pytest.raises(FormatError, match="past the end of a bin"):
        other.decode(ByteReader(bytes(data), "chunk"), 2, {})


def test_gaps_that_end_behind_the_cells_of_the_chunk_are_refused(small: ContextPrior) -> None:
    far = np.zeros((50, 3), np.int64)
    far[49] = 1
    data = small.encode(Codes.from_dense(far))
    assert decode(small, data, Codes.from_dense(far)).nnz == 3
    with pytest.raises(FormatError, match="past the end of the chunk"):
        small.decode(ByteReader(data, "chunk"), 2, {})


def test_the_sizes_of_a_hostile_chunk_are_refused_without_decoding(small: ContextPrior) -> None:
    with pytest.raises(FormatError, match="16 nonzeros and 16 levels are not possible"):
        small.stream_bytes(ByteReader(varints([16, 0, 16, 0, 1, 1]) + ZERO * 2, "chunk"), 5)
    with pytest.raises(FormatError, match="3 nonzeros and 2 levels are not possible"):
        small.stream_bytes(ByteReader(varints([2, 1, 1, 1, 1, 1]) + ZERO * 2, "chunk"), 5)
    with pytest.raises(FormatError, match="200 nonzeros cannot come from streams of these lengths"):
        small.stream_bytes(ByteReader(varints([200, 0, 200, 0, 1, 1]) + ZERO * 2, "chunk"), 100)
    with pytest.raises(FormatError, match="truncated"):
        small.stream_bytes(ByteReader(varints([1, 0, 1, 0, 1, 1]) + ZERO, "chunk"), 5)


def test_a_level_above_2_to_the_20_is_refused(small: ContextPrior) -> None:
    too_large = Codes(np.array([0, 1]), np.zeros(1, np.int32), np.array([MAX_LEVEL + 1], np.int32), 3)
    with pytest.raises(FormatError, match="a level exceeds 2\\^20"):
        small.decode(ByteReader(small.encode(too_large), "chunk"), 1, {})
