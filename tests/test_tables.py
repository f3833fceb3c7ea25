"""Frequency tables: codes on a logarithmic scale become weights that sum to 2^24 and are never zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.buckets import N_BUCKETS
from saecodec.rangecoder import TOTAL
from saecodec.tables import MAX_RESOLUTION, expand, frequency, max_code, quantize

resolutions = st.integers(0, MAX_RESOLUTION)


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[int], int]:
    resolution = draw(resolutions)
    return draw(st.lists(st.integers(0, max_code(resolution)), min_size=2, max_size=N_BUCKETS)), resolution


def specified_frequency(code: int, resolution: int) -> int:
    """docs/format.md, "Frequency tables", in Python's integers."""
    if code == 0:
        return 0
    exponent, mantissa = divmod(code - 1, 1 << resolution)
    return ((1 << resolution) + mantissa) << exponent


def specified_weights(codes: list[int], resolution: int) -> list[int]:
    f = [specified_frequency(code, resolution) for code in codes]
    if not any(f):
        f = [1] * len(f)
    weights = [1 + value * (TOTAL - len(f)) // sum(f) for value in f]
    weights[f.index(max(f))] += TOTAL - sum(weights)
    return weights


@given(tables())
def test_weights_are_what_the_format_says(table: tuple[list[int], int]) -> None:
    codes, resolution = table
    assert expand(np.array(codes), resolution).tolist() == specified_weights(codes, resolution)


@given(tables())
def test_weights_sum_to_2_to_the_24_and_none_is_below_one(table: tuple[list[int], int]) -> None:
    weights = expand(np.array(table[0]), table[1])
    assert weights.sum() == TOTAL
    assert weights.min() >= 1


@given(tables())
def test_a_larger_code_never_has_a_smaller_weight(table: tuple[list[int], int]) -> None:
    codes = np.array(table[0])
    weights = expand(codes, table[1])
    by_weight = codes[np.lexsort((weights, codes))]
    assert (np.diff(weights[np.lexsort((weights, codes))]) >= 0).all(), by_weight


@pytest.mark.parametrize("resolution", range(MAX_RESOLUTION + 1))
def test_frequencies_rise_with_the_code_and_double_each_octave(resolution: int) -> None:
    f = frequency(np.arange(max_code(resolution) + 1), resolution)
    assert (np.diff(f) > 0).all()
    octave = 1 << resolution
    np.testing.assert_array_equal(f[1 + octave :], 2 * f[1:-octave])
    assert f.tolist() == [specified_frequency(code, resolution) for code in range(max_code(resolution) + 1)]


def test_code_zero_keeps_weight_one_beside_seen_symbols() -> None:
    weights = expand(np.array([0, 20, 0, 5]), 0)
    assert weights[0] == weights[2] == 1


@pytest.mark.parametrize("resolution", range(MAX_RESOLUTION + 1))
def test_the_smallest_seen_symbol_weighs_more_than_an_unseen_one_beside_the_largest(resolution: int) -> None:
    weights = expand(np.array([max_code(resolution), 1, 0]), resolution)
    assert weights[1] > weights[2] == 1


@pytest.mark.parametrize("n_symbols", [2, 3, 16, 304])
def test_a_table_of_zeros_is_uniform_up_to_the_rest(n_symbols: int) -> None:
    weights = expand(np.zeros(n_symbols, np.int64), 2)
    assert (weights[1:] == weights[1]).all()
    assert 0 <= weights[0] - weights[1] < n_symbols
    assert weights.sum() == TOTAL


@pytest.mark.parametrize(
    "codes, resolution, weights",
    [
        ([1, 1], 0, [TOTAL // 2, TOTAL // 2]),
        ([0, 0], 0, [TOTAL // 2, TOTAL // 2]),
        ([2, 1], 0, [11184811, 5592405]),
        ([1, 0], 3, [TOTAL - 1, 1]),
        ([0, 0, 0], 0, [5592406, 5592405, 5592405]),
        ([5, 0, 3, 4], 1, [7456540, 1, 3728270, 5592405]),
        ([160, 1, 0], 3, [16777197, 18, 1]),
    ],
    ids=str,
)
def test_pinned_tables(codes: list[int], resolution: int, weights: list[int]) -> None:
    assert expand(np.array(codes), resolution).tolist() == weights


def test_a_stack_of_tables_expands_row_by_row() -> None:
    codes = np.random.default_rng(0).integers(0, max_code(2) + 1, (5, 304))
    np.testing.assert_array_equal(expand(codes, 2), np.stack([expand(row, 2) for row in codes]))


@given(
    resolutions, st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e9)), min_size=2, max_size=40), st.floats(1e-3, 1e3)
)
def test_chosen_codes_are_the_nearest_and_do_not_depend_on_the_scale(
    resolution: int, counts: list[float], scale: float
) -> None:
    array = np.array(counts)
    codes = quantize(array, resolution)
    assert codes.min() >= 0
    assert codes.max() <= max_code(resolution)
    if array.max() == 0:
        assert not codes.any()
        return
    assert (codes[array == array.max()] == max_code(resolution)).all()
    assert not codes[array == 0].any()
    np.testing.assert_array_less(np.abs(quantize(array * scale, resolution) - codes), 2)  # an edge may round either way
    seen = codes > 0
    f = frequency(codes, resolution)[seen].astype(float)
    ratio = (f / f.max()) / (array[seen] / array.max())
    step = 2.0 ** (1 / (1 << resolution)) if resolution == 0 else 1 + 1 / (1 << resolution)
    assert (np.abs(np.log2(ratio)) <= np.log2(step) / 2 + 0.01).all()


def test_what_is_rarer_than_2_to_the_minus_20_of_the_most_frequent_counts_as_unseen() -> None:
    assert quantize(np.array([2.0**30, 2.0**11, 2.0**10, 2.0**9]), 0).tolist() == [20, 1, 0, 0]
