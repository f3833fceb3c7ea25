"""The bucket code covers [0, 2^40) without gaps, and each value has one bucket and one offset."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saecodec.buckets import BASE, DIRECT, MAX_BITS, N_BUCKETS, OFFSET_BITS, bucket_of

LIMIT = 1 << MAX_BITS


def test_there_are_304_buckets() -> None:
    assert N_BUCKETS == len(BASE) == len(OFFSET_BITS) == 304


def test_the_buckets_tile_zero_to_2_to_the_40() -> None:
    ends = BASE + (np.int64(1) << OFFSET_BITS)
    assert BASE[0] == 0
    np.testing.assert_array_equal(ends[:-1], BASE[1:])
    assert ends[-1] == LIMIT


def test_values_below_16_are_their_own_bucket_without_an_offset() -> None:
    np.testing.assert_array_equal(bucket_of(np.arange(DIRECT)), np.arange(DIRECT))
    assert not OFFSET_BITS[:DIRECT].any()
    assert OFFSET_BITS[DIRECT] == 1


def test_a_bucket_spans_at_most_an_eighth_of_its_values() -> None:
    wide = np.arange(DIRECT, N_BUCKETS)
    assert (8 * (np.int64(1) << OFFSET_BITS[wide]) <= BASE[wide]).all()


def test_the_first_and_the_last_value_of_every_bucket_lie_in_it() -> None:
    index = np.arange(N_BUCKETS)
    np.testing.assert_array_equal(bucket_of(BASE), index)
    np.testing.assert_array_equal(bucket_of(BASE + (np.int64(1) << OFFSET_BITS) - 1), index)


@pytest.mark.parametrize(
    "value, bucket", [(16, 16), (17, 16), (18, 17), (31, 23), (32, 24), (1 << 20, 144), (LIMIT - 1, 303)]
)
def test_pinned_buckets(value: int, bucket: int) -> None:
    assert bucket_of(np.array([value])).tolist() == [bucket]


values = st.one_of(
    st.integers(0, 40), st.integers(0, LIMIT - 1), st.integers(LIMIT - 100, LIMIT - 1), st.integers(16_000, 17_000)
)


@given(st.lists(values, max_size=30))
def test_bucket_and_offset_give_the_value_back(numbers: list[int]) -> None:
    array = np.array(numbers, np.int64)
    symbols = bucket_of(array)
    offsets = array - BASE[symbols]
    assert symbols.dtype == np.int64
    assert ((offsets >= 0) & (offsets < np.int64(1) << OFFSET_BITS[symbols])).all()
    np.testing.assert_array_equal(BASE[symbols] + offsets, array)


@given(values, values)
def test_a_larger_value_never_has_a_smaller_bucket(a: int, b: int) -> None:
    low, high = bucket_of(np.array(sorted((a, b)), np.int64))
    assert low <= high


@pytest.mark.parametrize("exponent", range(4, MAX_BITS))
def test_every_power_of_two_starts_a_bucket(exponent: int) -> None:
    around = np.array([(1 << exponent) - 1, 1 << exponent])
    below, at = bucket_of(around)
    assert at == below + 1
    assert BASE[at] == 1 << exponent
