"""Indexing rows that are not in memory gives what numpy gives."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saecodec.formats.array_index import row_index

LEADING = st.lists(st.integers(0, 4), max_size=3).map(tuple)
ROW = st.sampled_from([(3,), (2, 3)])


def part(n: int) -> st.SearchStrategy[Any]:
    ends = st.none() | st.integers(-n - 2, n + 2)
    slices = st.builds(slice, ends, ends, st.none() | st.sampled_from([-3, -1, 1, 2]))
    places = st.integers(-n - (n == 0), n) | st.integers(-n, max(n - 1, 0))
    arrays = st.lists(places, max_size=4).map(lambda found: np.array(found, np.int64))
    pairs = st.lists(places, min_size=4, max_size=4).map(lambda found: np.array(found).reshape(2, 2))
    masks = st.lists(st.booleans(), min_size=n, max_size=n).map(lambda found: np.array(found, bool))
    return slices | places | arrays | pairs | masks


@st.composite
def cases(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], Any]:
    leading, row = draw(LEADING), draw(ROW)
    shape = (*leading, *row)
    kept = draw(st.integers(0, len(shape)))
    parts = [draw(part(n)) for n in shape[:kept]]
    if leading and draw(st.integers(0, 9)) == 0:
        parts = [
            np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool).reshape(leading)
            for n in (math.prod(leading),)
        ]
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), None)
    if draw(st.booleans()):
        parts.insert(draw(st.integers(0, len(parts))), Ellipsis)
    return leading, row, tuple(parts) if len(parts) != 1 or draw(st.booleans()) else parts[0]


@settings(max_examples=1000)
@given(cases())
def test_an_index_gives_what_numpy_gives(case: tuple[tuple[int, ...], tuple[int, ...], Any]) -> None:
    leading, row, index = case
    array = np.arange(math.prod((*leading, *row))).reshape(*leading, *row)
    try:
        expected = array[index]
    except (IndexError, DeprecationWarning):  # of numpy 1, where the result has no elements
        with pytest.raises(IndexError):
            _by_rows(array, leading, row, index)
        return
    try:
        found = _by_rows(array, leading, row, index)
    except IndexError as error:
        if "take the rows first" not in str(error):
            raise
        return
    np.testing.assert_array_equal(found, expected)
    assert found.shape == expected.shape


def _by_rows(array: Any, leading: tuple[int, ...], row: tuple[int, ...], index: Any) -> Any:
    rows, rest = row_index(index, leading, len(row))
    return array.reshape(-1, *row)[rows][rest]


@pytest.mark.parametrize("index", [1.5, "x", (0, "y"), True, np.array([0.5]), {}, (..., 0, ...), (0, 0, 0), 5, -6, [5]])
def test_what_is_no_index_is_refused(index: Any) -> None:
    with pytest.raises(IndexError):
        row_index(index, (5,), 1)


def test_a_slice_of_a_huge_array_takes_the_memory_of_what_it_names() -> None:
    rows, _ = row_index((slice(10**9, 10**9 + 3), slice(None, None, 10**9)), (1 << 40, 1 << 31), 1)
    assert rows.shape == (3, 3)
    assert rows[1, 1] == (10**9 + 1) * (1 << 31) + 10**9
    rows, _ = row_index([5, -1], (1 << 45,), 1)
    assert rows.tolist() == [5, (1 << 45) - 1]


@pytest.mark.parametrize("index", [([0, 2], 1), (1, [0, 1]), (slice(None), [1, 2]), (2, slice(None), 0), (..., [0, 1])])
def test_common_indices_are_not_refused(index: Any) -> None:
    array = np.arange(60).reshape(4, 5, 3)
    np.testing.assert_array_equal(_by_rows(array, (4, 5), (3,), index), array[index])


@pytest.mark.parametrize("index", [(1, ..., [0, 1]), (1, slice(None), [0, 1]), ([0, 1], ..., 0), ([0], [1], [2])])
def test_what_numpy_would_lay_out_otherwise_is_refused(index: Any) -> None:
    with pytest.raises(IndexError, match="take the rows first"):
        row_index(index, (4, 5), 1)
