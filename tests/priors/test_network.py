"""The context prior's network gives the bins of docs/format.md, whatever it is run with.

Bins choose tables and places, so one wrong bin is a broken file. Every arithmetic is held against `reference`, the
network in 64-bit integers (`context_cases.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from saecodec.codes import Codes
from saecodec.priors import network
from saecodec.priors.network import GAINS, MAX_BIAS, MAX_RANK, ROW_GAIN, Arithmetic, Network

DTYPES = [torch.float32, torch.float64, torch.int32, torch.int64]
HAS_CUDA = torch.cuda.is_available()
ARITHMETICS = [pytest.param(dtype, "cpu", id=f"{dtype} cpu") for dtype in DTYPES] + [
    pytest.param(dtype, "cuda", id=f"{dtype} cuda", marks=pytest.mark.skipif(not HAS_CUDA, reason="no CUDA"))
    for dtype in (torch.float32, torch.float64)
]
SEQ = "seq"
LARGEST = MAX_BIAS - 1

SIZES: dict[str, dict[str, int | bool]] = {
    "ordinary": {},
    "many units": {"rank": 192, "n_latents": 90, "n_blocks": 5, "n_bins": 97, "n_level_bins": 32},
    "one block": {"n_blocks": 1},
    "more blocks than latents": {"n_blocks": 50, "n_latents": 9},
    "one latent": {"n_latents": 1, "n_blocks": 2},
    "one unit": {"rank": 1},
    "one bin": {"n_bins": 1, "n_level_bins": 1},
    "most bins": {"n_bins": 128, "n_level_bins": 128},
    "weights at their limits": {"extreme": True, "rank": 33},
    "most units, weights at their limits": {"extreme": True, "rank": MAX_RANK, "n_bins": 128, "n_level_bins": 128},
}


def codes_for(cases: ModuleType, n: Network, n_rows: int, seed: int = 0, *, sequences: bool = True) -> Codes:
    made: Codes = cases.random_codes(seed, n_rows, len(n.block), signed=True, sequences=sequences)
    return made


# -- the same bins in any arithmetic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, device", ARITHMETICS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES.keys())
def test_bins_are_those_of_the_format(
    cases: ModuleType, sizes: dict[str, int | bool], dtype: torch.dtype, device: str
) -> None:
    for seed in range(3):
        n = cases.random_network(seed, **sizes)
        for codes in (codes_for(cases, n, 40, seed), codes_for(cases, n, 25, seed, sequences=False)):
            cases.assert_bins(Arithmetic(n, dtype, device), codes, cases.reference(n, codes))


def test_random_networks_use_most_of_their_bins(cases: ModuleType) -> None:
    """So the comparisons of this file compare something."""
    n = cases.random_network(0, n_latents=90, n_blocks=5, rank=32)
    told = cases.reference(n, codes_for(cases, n, 60))
    assert len(np.unique(told.bins)) == n.n_bins
    assert len(np.unique(told.level_bins)) == n.n_level_bins
    hidden = told.sums >> n.shifts
    assert 0.2 < (hidden <= 0).mean() < 0.8
    assert ((hidden > 0) & (hidden < 127)).mean() > 0.02


@given(st.data())
def test_any_network_gives_the_same_bins_in_any_arithmetic(
    cases: ModuleType, any_codes: Callable[..., st.SearchStrategy[Codes]], data: st.DataObject
) -> None:
    n = cases.random_network(
        data.draw(st.integers(0, 1 << 30)),
        n_latents=data.draw(st.integers(1, 12)),
        n_blocks=data.draw(st.integers(1, 5)),
        rank=data.draw(st.integers(1, 20)),
        n_bins=data.draw(st.integers(1, 128)),
        n_level_bins=data.draw(st.integers(1, 128)),
        extreme=data.draw(st.booleans()),
    )
    codes = data.draw(any_codes(len(n.block), columns=False))
    if data.draw(st.booleans()):
        ids = data.draw(st.lists(st.integers(0, 1), min_size=codes.n_rows, max_size=codes.n_rows))
        codes = replace(codes, columns={SEQ: np.array(ids, np.int64)})
    told = cases.reference(n, codes)
    for dtype in DTYPES:
        cases.assert_bins(Arithmetic(n, dtype), codes, told)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_no_bin(
    cases: ModuleType, torch_threads: Callable[[int], None], dtype: torch.dtype, threads: int
) -> None:
    """Large enough that torch cuts sums and products among its threads."""
    n = cases.random_network(1, n_latents=150, n_blocks=3, rank=192, n_bins=97)
    codes = codes_for(cases, n, 700)
    torch_threads(threads)
    if dtype is torch.float32:
        cases.assert_bins(Arithmetic(n, dtype), codes, cases.reference(n, codes))
    else:
        for a, b in zip(
            cases.walk_bins(Arithmetic(n), codes), cases.walk_bins(Arithmetic(n, dtype), codes), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32], ids=str)
@pytest.mark.parametrize("slab, tile, nonzeros", [(1, 1, 1), (100, 3, 5), (61, 64, 1000), (1 << 30,) * 3])
def test_the_sizes_of_tiles_change_no_bin(
    cases: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    slab: int,
    tile: int,
    nonzeros: int,
) -> None:
    n = cases.random_network(2, n_latents=40)
    codes = codes_for(cases, n, 30)
    sizes = {"_SLAB_CELLS": slab, "_TILE": min(tile, 1000), "_TILE_NONZEROS": nonzeros}
    for name, size in sizes.items():
        monkeypatch.setattr(network, name, size)
    cases.assert_bins(Arithmetic(n, dtype), codes, cases.reference(n, codes))


@pytest.fixture
def matmul_precision() -> Iterator[Callable[[str], None]]:
    """Sets how exact torch wants products of float32, for one test."""
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("extreme", [False, True])
def test_less_exact_float32_products_change_no_bin(
    cases: ModuleType, matmul_precision: Callable[[str], None], precision: str, extreme: bool
) -> None:
    """Weights and hidden units have 7 bits, times a power of two: bfloat16 holds them, and sums stay in float32."""
    matmul_precision(precision)
    n = cases.random_network(3, n_latents=80, rank=MAX_RANK, n_bins=128, extreme=extreme)
    codes = codes_for(cases, n, 150)
    cases.assert_bins(Arithmetic(n), codes, cases.reference(n, codes))


# -- exact in front of the shifts --------------------------------------------------------------------------------------


class Recording(Arithmetic):
    """Keeps all that it is asked to cut into bins, undone of the shifts: hidden units, logits and scores."""

    def __init__(self, n: Network, dtype: torch.dtype) -> None:
        super().__init__(n, dtype)
        self.seen: list[Tensor] = []

    def floor(self, values: Tensor, shift: int | Tensor, top: int) -> Tensor:
        unit = torch.exp2(torch.as_tensor(shift, dtype=torch.float64)) if self.floating else 1
        self.seen.append(values.to(torch.float64 if self.floating else torch.int64) * unit)
        return super().floor(values, shift, top)


def recorded(
    cases: ModuleType, n: Network, codes: Codes, dtype: torch.dtype
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of each block the sums (T, r), logits (F_g, T) and scores (K,)."""
    arithmetic = Recording(n, dtype)
    for _ in cases.walk_blocks(arithmetic, codes):
        sums, *rest = arithmetic.seen
        logits, scores = ([part for part in rest if part.ndim == axes] for axes in (2, 1))  # tile by tile
        yield sums, torch.cat([sums[:0, :1].expand(0, codes.n_rows), *logits]), torch.cat([sums[:0, 0], *scores])
        arithmetic.seen.clear()


def constant_network(
    rank: int, hidden_bias: int, weight: int, bias: int, shift: int, level_shift: int, alternate: bool = False
) -> Network:
    """Latent 0 in front of latent 1; all weights alike, or of alternating sign."""
    signs = np.where(np.arange(3 * rank) % 2 == 1, -1, 1) if alternate else np.ones(3 * rank, np.int64)
    rows = np.array([signs, -signs])
    weights = (weight * rows).astype(np.int8)
    zeros = np.zeros(2, np.int64)
    return Network(
        np.array([0, 1]),
        np.full(GAINS, 127),
        weights[:1],
        np.full((2, rank), hidden_bias),
        np.zeros(rank, np.int64),
        weights[:, :rank],
        zeros + bias,
        weights[:, :rank],
        zeros - bias,
        shift,
        level_shift,
        128,
        128,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [0, 11, 23])
@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("bias", [LARGEST, -LARGEST])
@pytest.mark.parametrize("alternate", [False, True])
def test_logits_at_the_limits_are_exact(
    cases: ModuleType, dtype: torch.dtype, shift: int, weight: int, bias: int, alternate: bool
) -> None:
    n = constant_network(MAX_RANK, LARGEST, weight, bias, shift, 23 - shift, alternate)
    codes = Codes.from_dense(np.ones((9, 2), np.int64))
    told = cases.reference(n, codes)
    if not alternate:
        largest = MAX_RANK * 127**2 + LARGEST
        assert largest == np.abs(told.logits).max() == 16_774_923 < 1 << 24
    for g, (sums, logits, scores) in enumerate(recorded(cases, n, codes, dtype)):
        np.testing.assert_array_equal(sums, told.sums[g])
        np.testing.assert_array_equal(logits, told.logits[[g]])
        np.testing.assert_array_equal(scores, told.scores[g])
    cases.assert_bins(Arithmetic(n, dtype), codes, told)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_all_sums_of_random_networks_at_the_limits_are_exact(cases: ModuleType, dtype: torch.dtype, seed: int) -> None:
    n = cases.random_network(seed, n_latents=60, rank=MAX_RANK, n_bins=128, n_level_bins=128, extreme=True)
    codes = codes_for(cases, n, 40, seed)
    told, cells = cases.reference(n, codes), n.layout.cells(codes)
    for g, (sums, logits, scores) in enumerate(recorded(cases, n, codes, dtype)):
        some = slice(n.starts[g], n.starts[g + 1])
        mine = (cells.column >= some.start) & (cells.column < some.stop)
        np.testing.assert_array_equal(sums, told.sums[g])
        np.testing.assert_array_equal(logits, told.logits[some])
        np.testing.assert_array_equal(scores, told.scores[cells.column[mine], cells.row[mine]])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_as_much_context_as_a_row_may_have_are_exact(cases: ModuleType, dtype: torch.dtype, sign: int) -> None:
    """258 gains of 127 in each of three rows, all weights and the bias at their limit: just below 2^24."""
    f, r = 259, 3
    n = Network(
        np.append(np.zeros(f - 1, np.int64), 1),
        np.full(GAINS, 127),
        np.full((f - 1, 3 * r), sign * 127, np.int8),
        np.full((2, r), sign * LARGEST),
        np.array([0, 17, 23]),
        np.ones((f, r), np.int8),
        np.zeros(f, np.int64),
        np.ones((f, r), np.int8),
        np.zeros(f, np.int64),
        3,
        3,
        128,
        128,
    )
    codes = Codes.from_dense(np.full((5, f), 16))
    told = cases.reference(n, codes)
    assert np.abs(told.sums).max() == 3 * 258 * 127 * 127 + LARGEST < 1 << 24
    for g, (sums, _, _) in enumerate(recorded(cases, n, codes, dtype)):
        np.testing.assert_array_equal(sums, told.sums[g])
    cases.assert_bins(Arithmetic(n, dtype), codes, told)


def test_the_limits_are_those_that_keep_sums_below_2_to_the_24() -> None:
    assert MAX_RANK == 780
    assert MAX_RANK * 127**2 + LARGEST < 1 << 24 <= (MAX_RANK + 1) * 127**2 + MAX_BIAS
    assert 3 * ROW_GAIN * 127 + LARGEST < 1 << 24


# -- what is context of what -------------------------------------------------------------------------------------------


def by_latent(n: Network, bins: np.ndarray) -> np.ndarray:
    out = np.empty_like(bins)
    out[n.layout.latent_of] = bins
    return out


def test_rows_without_links_may_be_told_one_by_one(cases: ModuleType) -> None:
    n = cases.random_network(5)
    codes = replace(codes_for(cases, n, 20, sequences=False), columns={SEQ: np.arange(20)})
    whole, _ = cases.walk_bins(Arithmetic(n), codes)
    for row in range(20):
        alone, _ = cases.walk_bins(Arithmetic(n), codes[row : row + 1])
        np.testing.assert_array_equal(alone[:, 0], whole[:, row])


def test_sequences_may_be_told_one_by_one(cases: ModuleType) -> None:
    n = cases.random_network(6)
    codes = codes_for(cases, n, 40)
    whole, _ = cases.walk_bins(Arithmetic(n), codes)
    cuts = [0, *(np.flatnonzero(np.diff(codes.columns[SEQ])) + 1).tolist(), 40]
    assert len(cuts) > 5
    for a, b in pairwise(cuts):
        np.testing.assert_array_equal(cases.walk_bins(Arithmetic(n), codes[a:b])[0], whole[:, a:b])
    linked = replace(codes, columns={})
    assert (cases.walk_bins(Arithmetic(n), linked)[0] != whole).any()


def test_a_row_is_context_of_itself_and_the_rows_beside_it_in_later_blocks_alone(cases: ModuleType) -> None:
    n = cases.random_network(7, n_latents=60, n_blocks=3, rank=24)
    codes = codes_for(cases, n, 12, sequences=False)
    for ids, reached in (
        (np.zeros(12, np.int64), [5, 6, 7]),
        (np.arange(12) >= 7, [5, 6]),
        (np.arange(12) >= 6, [6, 7]),
    ):
        ids = np.asarray(ids, np.int64)
        start = by_latent(n, cases.walk_bins(Arithmetic(n), replace(codes, columns={SEQ: ids}))[0])
        dense = codes.to_dense()
        dense[6] = np.where(n.block == 1, np.where(dense[6] == 0, 9, 0), dense[6])
        after = by_latent(n, cases.walk_bins(Arithmetic(n), Codes.from_dense(dense, {SEQ: ids}))[0])
        changed = start != after
        assert np.flatnonzero(changed.any(0)).tolist() == reached
        assert set(n.block[changed.any(1)].tolist()) == {2}


def test_the_column_of_another_name_links_no_rows(cases: ModuleType) -> None:
    n = cases.random_network(8)
    codes = codes_for(cases, n, 20)
    other = replace(codes, columns={"doc": codes.columns[SEQ]})
    bare = replace(codes, columns={})
    np.testing.assert_array_equal(cases.walk_bins(Arithmetic(n), other)[0], cases.walk_bins(Arithmetic(n), bare)[0])


def crowded_network(gain: int) -> Network:
    """600 latents of block 0 and 100 of block 1; two probes in block 2 whose bin counts the nonzeros of their row, and
    in block 3 one more."""
    block = np.repeat([0, 1, 2, 3], [600, 100, 2, 1])
    f = len(block)
    context = np.zeros((702, 3), np.int8)
    context[:700] = 1
    return Network(
        block,
        np.full(GAINS, gain),
        context,
        np.zeros((4, 1), np.int64),
        np.array([9]),
        np.ones((f, 1), np.int8),
        np.zeros(f, np.int64),
        np.ones((f, 1), np.int8),
        np.zeros(f, np.int64),
        0,
        0,
        128,
        128,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "first, second, told",
    [
        (512, 0, 64),  # gains add up to 2^15: all are context
        (513, 0, 0),  # one more, and the block is left out
        (500, 12, 64),
        (500, 13, 62),  # the block that goes too far is left out, what was before stays
        (513, 9, 0),  # and so are the blocks behind it
    ],
)
def test_a_block_that_takes_the_gains_of_a_row_beyond_2_to_the_15_is_left_out(
    cases: ModuleType, dtype: torch.dtype, first: int, second: int, told: int
) -> None:
    n = crowded_network(64)
    dense = np.zeros((3, 703), np.int64)
    dense[1, :first] = 3
    dense[1, 600 : 600 + second] = 1 << 20
    dense[0, 5] = 1  # a neighbour's own context is not left out: 64 >> 9 is 0, so it takes 8
    dense[0, 20:27] = 1
    codes = Codes.from_dense(dense)
    bins, _ = cases.walk_bins(Arithmetic(n, dtype), codes)
    np.testing.assert_array_equal(bins[700:], [[told + 1, told + 1, told]] * 3)
    cases.assert_bins(Arithmetic(n, dtype), codes, cases.reference(n, codes))


def test_a_row_whose_gains_add_up_to_2_to_the_15_is_context_beside_one_of_more(cases: ModuleType) -> None:
    n, dense = crowded_network(64), np.zeros((3, 703), np.int64)
    dense[0, :512] = dense[1, :513] = dense[2, :8] = 1
    bins, _ = cases.walk_bins(Arithmetic(n), Codes.from_dense(dense, {SEQ: np.arange(3)}))
    assert bins[700].tolist() == [64, 0, 1]


def test_levels_above_16_are_context_as_16_is(cases: ModuleType) -> None:
    n = cases.random_network(9)
    dense = codes_for(cases, n, 20, sequences=False).to_dense()
    cut = Codes.from_dense(np.abs(dense).clip(0, 16))
    np.testing.assert_array_equal(
        cases.walk_bins(Arithmetic(n), Codes.from_dense(dense))[0], cases.walk_bins(Arithmetic(n), cut)[0]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_chunk_without_rows_has_no_bins(cases: ModuleType, dtype: torch.dtype) -> None:
    n = cases.random_network(10)
    bins, level_bins = cases.walk_bins(Arithmetic(n, dtype), codes_for(cases, n, 0))
    assert bins.shape == (20, 0)
    assert level_bins.shape == (0,)
